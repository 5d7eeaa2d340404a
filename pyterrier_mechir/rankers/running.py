"""How a ranker runs: the twin of its model, batches of sequences, scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

import numpy as np

from pyterrier_mechir.models.modes import as_alone
from pyterrier_mechir.models.opened import Batch, Opened, Pooled
from pyterrier_mechir.rankers.batches import SharedBatch, batches_of_sequences, padded, rows_of
from pyterrier_mechir.rankers.given import constructor
from pyterrier_mechir.rankers.identity import Identified
from pyterrier_mechir.text.encoding import Encoded, unique
from pyterrier_mechir.text.sequences import Sequences

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from pyterrier_mechir.models.twins import Twins


Self = TypeVar("Self", bound="Running")


class Tower(NamedTuple):
    """A model that encodes, and what it runs under.

    Args:
        model: the transformers model, without edits.
        edits: the edits, in the order in which those of one activation are applied.
    """

    model: Any
    edits: tuple[Any, ...]

    def is_as(self, other: Tower) -> bool:
        """Whether the other is the same model under the same edits."""
        return (
            self.model is other.model
            and len(self.edits) == len(other.edits)
            and all(one is another for one, another in zip(self.edits, other.edits, strict=True))
        )


class Running(Identified, ABC):
    """The running of a ranker: what computes its scores, whatever they are made of.

    Attributes:
        batch_tokens: most tokens in a batch.
    """

    libraries: ClassVar[tuple[str, ...]] = ()
    """The packages whose models the class takes too, by their first names."""

    reads_query: ClassVar[bool]
    """Whether the query is part of the sequences that are patched."""

    varies: str = "document"
    """Which side the pairs vary on, ``document`` or ``query`` (see ``facing``)."""

    reads_first_token: bool
    """Whether the score reads the last layer at the first position only."""

    _encodes_positions: bool = False
    """Whether :meth:`encode` gives something of each position by itself, ``[B, S, d]``."""

    keeps_graph: bool = False
    """Whether gradients reach what encodes the side that is the same for both sides of a pair, as learning needs."""

    batch_tokens: int
    _twins: Twins

    @property
    @abstractmethod
    def sequences(self) -> Sequences:
        """How texts become the sequences that the model reads."""

    @abstractmethod
    def facing(self: Self, side: str) -> Self:
        """This ranker with pairs that vary on one side, the other side being the same for both."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Whatever a family computes, it computes as if no mode of torch were set around it."""
        super().__init_subclass__(**kwargs)
        for name in {"__init__", "encode", "compare", "query_inputs"}.intersection(vars(cls)):
            wrap = constructor if name == "__init__" else as_alone()
            setattr(cls, name, wrap(vars(cls)[name]))

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @property
    def twin(self) -> Any:
        """What runs in place of ``model``: modules of the running thread's own, over the model's very weights.

        See ``pyterrier_mechir.models.twins``. Whatever computes scores runs this, and never the model itself.
        """
        return self._twins.current()

    @property
    def opened(self) -> Opened:
        """The model opened up, as recording, replaying and gradients take it: its parts, and this ranker's forward.

        It belongs to the running thread, and to the model as it is now: take one for each call, and keep none.
        """
        held = self._held()
        return Opened(
            self.anatomy.of(held.twin),
            held.forward,
            held.encode,
            self.reads_first_token,
            held._of_pooled,
            held._reads_stream,
            held._position_read,
            held.compare if held._is_plain and held._encodes_positions else None,
        )

    @property
    def _reads_stream(self) -> bool:
        """Whether scores depend on a text through the residual stream alone.

        A decoder may read the text beside what the encoder made of it, and a class of the user's own may do anything.
        """
        return self._is_plain and not self.model.config.is_encoder_decoder

    @property
    def _is_plain(self) -> bool:
        """Whether scores are computed as the package does, and not by methods of a user's class."""
        made = (getattr(type(self), name) for name in ("collate", "encode", "compare", "forward"))
        return all(method.__module__.partition(".")[0] == __name__.partition(".")[0] for method in made)

    @property
    def _of_pooled(self) -> Pooled | None:
        """How scores are made of a weighted sum of final states; None where they are made otherwise."""
        return None

    @property
    def _position_read(self) -> Callable[[Batch], torch.Tensor] | None:
        """The one position of each run whose final state scores are made of, given a batch; None for more than one."""
        return (lambda batch: batch["input_ids"].new_zeros(len(batch["input_ids"]))) if self.reads_first_token else None

    def _held(self: Self) -> Self:
        """This ranker with the running thread's twin alone, which no batch then compares with the model again."""
        return self.running(self.twin)

    def running(self: Self, model: Any) -> Self:
        """This ranker with another model of the same kind in the place of its twins, whatever thread it runs in.

        Args:
            model: what runs; nobody else may put hooks into it meanwhile.
        """
        made = copy(self)
        made._twins = self._twins.of_all_threads(model)
        return made

    def towers(self) -> dict[str, Tower]:
        """The models that encode, by the side that each encodes: ``both``, or ``query`` and ``document``."""
        return {"both": Tower(self.model, self._twins.edits)}

    @property
    def models(self) -> list[PreTrainedModel]:
        """The transformers models that scores are computed by: their twins."""
        return [self.twin]

    @property
    def _switches(self) -> dict[str, bool]:
        """What the model's forward is told: decoders would keep keys and values for tokens that never come."""
        return {"use_cache": False} if getattr(self.model.config, "use_cache", False) else {}

    @abstractmethod
    def encode(self, batch: Batch) -> torch.Tensor:
        """What the model makes of each sequence of a batch, ``[B, ...]``, in float32."""

    def compare(self, encoded: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Scores ``[B]`` of encoded sequences, each against its row of the query inputs; the batch has both."""
        return encoded

    def forward(self, batch: Batch) -> torch.Tensor:
        """Scores ``[B]``, in float32, of the runs of a batch made by :meth:`collate`."""
        return self.compare(self.encode(batch), batch)

    def query_inputs(self, queries: Sequence[str]) -> Batch:
        """What ``compare`` reads of each query; a row per query. Nothing where sequences have the query in them."""
        return {}

    @as_alone()
    def score(
        self,
        queries: Sequence[str],
        texts: Sequence[str],
        *,
        batch_size: int | None = None,
        verbose: bool = False,
    ) -> np.ndarray:
        """Scores of (query, text) pairs, each distinct sequence computed once.

        Args:
            queries: the queries, one for each text.
            texts: the texts.
            batch_size: sequences in a forward pass; None batches by length.
            verbose: show a progress bar.

        Returns:
            float32 ``[len(texts)]``.
        """
        if self.varies == "query":
            return self.facing("document").score(queries, texts, batch_size=batch_size, verbose=verbose)
        held = self._held()
        return held._scores(held.parts(queries, texts, batch_size=batch_size, verbose=verbose), len(texts))

    @as_alone()
    def score_sequences(
        self,
        sequences: Sequence[Encoded],
        contexts: Sequence[int],
        inputs: Batch,
        *,
        batch_size: int | None = None,
    ) -> np.ndarray:
        """Scores of sequences of the side that varies, of which equal ones are computed once.

        Args:
            sequences: the sequences, such as those of ``sequences``.
            contexts: for each, the row of its query in ``inputs``, or of its document where queries vary.
            inputs: the ``query_inputs`` of the distinct contexts.
            batch_size: sequences in a forward pass; None batches by length.

        Returns:
            float32 ``[len(sequences)]``.
        """
        held = self._held()
        distinct, which = unique([sequence.key() for sequence in sequences])
        firsts = dict(zip(reversed(which), reversed(sequences), strict=True))
        items = [firsts[number] for number in range(len(distinct))]
        return held._scores(held._shared(items, which, contexts, inputs, batch_size), len(sequences))

    def _scores(self, batches: Iterable[SharedBatch], n: int) -> np.ndarray:
        import torch

        from pyterrier_mechir.models.precision import check_finite, precision_of
        from pyterrier_mechir.models.products import packed_products

        opened, scores = self.opened, np.empty(n, dtype=np.float32)
        with torch.no_grad(), packed_products(opened.anatomy):
            for shared in batches:
                encoded = opened.encode(shared.batch)
                scores[shared.rows] = self.compare(encoded[shared.places], shared.inputs).cpu().numpy()
        check_finite(scores, str(precision_of(self.model)).removeprefix("torch."))
        return scores

    def parts(
        self,
        queries: Sequence[str],
        texts: Sequence[str],
        *,
        batch_size: int | None = None,
        verbose: bool = False,
        inputs: Batch | None = None,
    ) -> Iterator[SharedBatch]:
        """The batches of distinct sequences that :meth:`score` computes for these arguments; each row is in one.

        Args:
            queries: as in :meth:`score`.
            texts: as there.
            batch_size: as there.
            verbose: as there.
            inputs: the ``query_inputs`` of the distinct queries, if they are known.
        """
        distinct, which_query = unique(queries)
        if self.reads_query:
            items, which_item = unique(list(zip(queries, texts, strict=True)))
            sequences = self.sequences.plain([query for query, _ in items], [text for _, text in items])
        else:
            items, which_item = unique(texts)
            sequences = self.sequences.plain([], items)
        inputs = self.query_inputs(distinct) if inputs is None else inputs
        yield from self._shared(sequences, which_item, which_query, inputs, batch_size, repr(self) if verbose else None)

    def _shared(
        self,
        sequences: Sequence[Encoded],
        which: Sequence[int],
        contexts: Sequence[int],
        inputs: Batch,
        batch_size: int | None = None,
        show_as: str | None = None,
    ) -> Iterator[SharedBatch]:
        """Batches of distinct sequences, with the rows that read them.

        Args:
            sequences: the distinct sequences.
            which: for each row, the sequence that it reads.
            contexts: for each row, its row of the query inputs.
            inputs: the query inputs.
            batch_size: as in :meth:`score`.
            show_as: what a progress bar is called; None shows none.
        """
        readers = rows_of(which, len(sequences))
        for index, batch in batches_of_sequences(self, sequences, batch_size, show_as):
            rows = [row for i in index for row in readers[i]]
            places = [place for place, i in enumerate(index) for _ in readers[i]]
            of_rows = {name: value[[contexts[row] for row in rows]] for name, value in inputs.items()}
            of_places = {name: value[places] for name, value in batch.items()}
            yield SharedBatch(batch, rows, places, of_places | of_rows)

    def collate(self, sequences: Sequence[Encoded], query_inputs: Batch, queries: Sequence[int]) -> Batch:
        """Pad sequences into a batch.

        Args:
            sequences: ``B`` sequences.
            query_inputs: from ``query_inputs``.
            queries: the row of each sequence's query.

        Returns:
            ``input_ids``, ``attention_mask`` and, where the tokenizer has them, ``token_type_ids``, ``[B, S]``, and
            the rows of the query inputs, all on the ranker's device.
        """
        batch = padded(sequences, self.tokenizer, self.device)
        return batch | {name: value[list(queries)] for name, value in query_inputs.items()}
