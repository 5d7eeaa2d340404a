"""What every ranker has: a checkpoint, how it encodes a pair, and how it scores."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from copy import copy, deepcopy
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
import pandas as pd

from pyterrier_mechir._options import one_of
from pyterrier_mechir.models.anatomy import Anatomy
from pyterrier_mechir.models.batching import by_length, tokens_at_once
from pyterrier_mechir.models.components import COMPONENTS, FEATURES
from pyterrier_mechir.models.sites import Site, parse_site
from pyterrier_mechir.rankers.batches import Part
from pyterrier_mechir.text.alignment import FILL, Alignment, align, keep_edit, token_classes, with_fillers
from pyterrier_mechir.text.encoding import (
    CLS,
    SEP,
    SPECIAL,
    UNATTENDED,
    AlignedPair,
    Encoded,
    Template,
    Tokens,
    ended_alike,
)
from pyterrier_mechir.text.fillers import Filler, Fillers, RandomFiller
from pyterrier_mechir.text.sequences import unique
from pyterrier_mechir.text.vocabulary import Vocabulary

if TYPE_CHECKING:
    import torch
    from transformer_lens import ActivationCache
    from transformer_lens.hook_points import HookPoint
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from pyterrier_mechir.lens.bridge import Hook, Lens, NamesFilter
    from pyterrier_mechir.models.autoencoder import Autoencoder
    from pyterrier_mechir.models.opened import Batch
    from pyterrier_mechir.stages.scorer import Scorer
    from pyterrier_mechir.text.positions import Positions


Self = TypeVar("Self", bound="Ranker")

DTYPES = ("float32", "bfloat16", "float16", "float64")

REDUCED = ("bfloat16", "float16")
"""Those in which only the products of the layers are computed."""

UNLIMITED = 100_000
"""Tokenizers without a length limit of their own report a huge number; models give theirs."""


class Ranker(ABC):
    """A neural ranker to be interpreted.

    Args:
        model: a Hugging Face id, a directory, or a loaded ``(model, tokenizer)``.
        max_length: longest sequence, in tokens with special ones; None takes the checkpoint's own.
        device: None takes CUDA, then MPS, then the CPU; a loaded model stays where it is unless a device is given.
        dtype: precision of the weights, ``"float32"`` by default. With ``"bfloat16"`` or ``"float16"`` the layers'
            linear maps alone have and multiply fewer bits (see :mod:`~pyterrier_mechir.models.precision`); a loaded
            model is then copied. Else a loaded model stays in the precision that it has.

    Attributes:
        name: how figures and reports call it: the id, the directory, or the model's class; may be set.
        n_layers: layers of the model.
        n_heads: attention heads of a layer.
        model: the transformers model.
        tokenizer: its tokenizer.

    Raises:
        ValueError: the checkpoint cannot be loaded, its architecture is not supported, or its tokenizer is not fast.
    """

    reads_query: ClassVar[bool]
    """Whether the query is part of the sequences that are patched."""

    varies: str = "document"
    """Which side the pairs vary on, ``document`` or ``query`` (see :meth:`facing`)."""

    reads_first_token: bool
    """Whether the score reads the last layer at the first position only."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    def __init__(
        self,
        model: str | Path | tuple[Any, Any],
        *,
        max_length: int | None,
        device: str | None,
        dtype: str,
        auto_class: str,
        subfolder: str = "",
    ):
        import torch
        import transformers

        from pyterrier_mechir.models.checkpoints import infer_device, load_checkpoint
        from pyterrier_mechir.models.precision import reduce_products

        precision = getattr(torch, one_of("dtype", dtype, DTYPES))
        if isinstance(model, tuple):
            self.model, self.tokenizer = model if dtype not in REDUCED else (deepcopy(model[0]), model[1])
            self.name = type(self.model).__name__
            self._checkpoint: str | int = id(self.model)
            self.device = self.model.device if device is None else torch.device(device)
        else:
            self.name = self._checkpoint = str(model)
            auto = getattr(transformers, auto_class)
            loaded = "auto" if dtype in REDUCED else precision
            self.model, self.tokenizer = load_checkpoint(self.name, auto, subfolder, loaded)
            self.device = infer_device(device)
        if dtype in REDUCED:
            reduce_products(self.model, precision)
        if not self.tokenizer.is_fast:
            raise ValueError(f"{type(self.tokenizer).__name__} is not a fast tokenizer; load it with use_fast=True.")
        self.anatomy = Anatomy(self.model)
        self.model.to(self.device).eval()  # type: ignore[arg-type]
        self.dtype = dtype
        self.max_length = max_length or self._longest()
        self.batch_tokens = tokens_at_once(self.device)
        self._cuts_left = self.tokenizer.truncation_side == "left"
        self._template = self._made_template()
        self.vocabulary = Vocabulary(self.tokenizer)
        self._fillers: dict[Any, Fillers] = {}

    def _made_template(self) -> Template:
        """What surrounds the texts in every sequence."""
        return Template.of(self.tokenizer, pair=self.reads_query)

    def _longest(self) -> int:
        config = self.model.config
        positions = getattr(config, "max_position_embeddings", UNLIMITED)
        if config.model_type in ("roberta", "xlm-roberta", "mpnet"):
            positions -= 2
        return int(min(positions, self.tokenizer.model_max_length))

    @property
    def n_layers(self) -> int:
        return self.anatomy.n_layers

    @property
    def n_heads(self) -> int:
        return self.anatomy.n_heads

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
        """What :meth:`compare` reads of each query; a row per query. Nothing where sequences have the query in them."""
        return {}

    @abstractmethod
    def _settings(self) -> dict[str, Any]:
        """What, beside the checkpoint, decides the scores."""

    def about(self, *, fingerprint: bool = False) -> dict[str, Any]:
        """What identifies the ranker, so that a run can be repeated.

        Args:
            fingerprint: add ``weights``, a digest of the model's weights and its tokenizer; reading them all takes
                about a second per gigabyte.

        Returns:
            ``ranker`` (the class), ``name``, ``revision`` (the commit of a checkpoint from the hub, else None),
            ``architecture``, ``dtype``, ``max_length`` and the ranker's own settings.
        """
        from pyterrier_mechir.models.precision import precision_of

        about = {
            "ranker": type(self).__name__,
            "name": self.name,
            "revision": getattr(self.model.config, "_commit_hash", None),
            "architecture": type(self.model).__name__,
            "dtype": str(precision_of(self.model)).removeprefix("torch."),
            "max_length": self.max_length,
            **self._settings(),
            **self._attached(),
        }
        return about | {"weights": self._fingerprint} if fingerprint else about

    @property
    def models(self) -> list[PreTrainedModel]:
        """The transformers models that scores are computed by."""
        return [self.model]

    def _attached(self) -> dict[str, Any]:
        of_site = self.anatomy.autoencoders.items()
        attached = {f"L{layer}.{name}": repr(autoencoder) for (layer, name), (autoencoder, _) in of_site}
        return {"autoencoders": attached} if attached else {}

    @cached_property
    def _fingerprint(self) -> str:
        from pyterrier_mechir.models.checkpoints import fingerprint

        return fingerprint(self._weights(), self.tokenizer)

    def _weights(self) -> dict[str, torch.Tensor]:
        """All weights that decide the scores, by name."""
        return self.model.state_dict()

    def sites(self) -> pd.DataFrame:
        """What can be patched.

        Returns:
            A row per component and layer: ``component``, ``layer``, ``n_parts`` (heads or neurons that can be patched
            apart, 1 for the whole) and ``hook`` (what TransformerLens calls it). What each is,
            :data:`~pyterrier_mechir.models.components.COMPONENTS` says.
        """
        had = {name: kind for name, kind in COMPONENTS.items() if kind not in self.anatomy.lacks}
        rows = [
            (name, layer, self.anatomy.groups(activation), self.anatomy.hook(name, layer))
            for name, activation in had.items()
            for layer in range(self.n_layers)
            if name != "embed"
        ]
        rows += [("embed", 0, 1, self.anatomy.hook("embed", 0))] if "embed" in had else []
        return pd.DataFrame(rows, columns=["component", "layer", "n_parts", "hook"])

    def embeddings(self) -> np.ndarray:
        """The input embedding table: what each token of the vocabulary is before the model's first layer.

        Returns:
            float32 ``[vocabulary, d]``, with a row for each token id, for reading only: of a model in float32 on the
            CPU, it is the model's own memory.
        """
        weight: Any = self.model.get_input_embeddings().weight
        return np.asarray(weight.detach().float().cpu().numpy())

    @cached_property
    def lens(self) -> Lens:
        """A TransformerLens bridge on the ranker's weights, for interactive work; made when it is first asked for.

        It returns what the model does (logits, or the last hidden states), and attends eagerly. Its hook points have
        the names that :meth:`sites` lists. The ranker does not notice it: its modules are its own, only the weights are
        the same.
        """
        from pyterrier_mechir.lens.bridge import Lens

        return Lens(self)

    @property
    def hook_dict(self) -> dict[str, HookPoint]:
        """The hook points of :attr:`lens`, by name."""
        return self.lens.hook_dict

    def run_with_cache(
        self,
        queries: str | Sequence[str],
        texts: str | Sequence[str],
        *,
        names_filter: NamesFilter = None,
        device: str | torch.device | None = None,
    ) -> tuple[torch.Tensor, ActivationCache]:
        """Score pairs in one batch, and keep the activations.

        Args:
            queries: a query, or one for each text.
            texts: a text, or several. Of a bi-encoder, their encoder is the one that is run.
            names_filter: the hook points to keep: a name, a list of names, or a function of the name; None for all.
            device: where to keep them; None leaves them where they are.

        Returns:
            scores ``[len(texts)]``, with gradients unless you turn them off, and TransformerLens' cache:
            ``cache["z", 5]`` or ``cache["blocks.5.attn.hook_z"]`` has a row per pair, in their order. What is beyond
            the end of a shorter sequence is padding.

        Raises:
            ValueError: queries and texts are no pairs, or there is no such hook point.
        """
        from pyterrier_mechir.lens.bridge import run_with_cache

        return run_with_cache(self, queries, texts, names_filter, device)

    def run_with_hooks(
        self, queries: str | Sequence[str], texts: str | Sequence[str], *, fwd_hooks: Sequence[Hook] = ()
    ) -> torch.Tensor:
        """Score pairs in one batch, with functions called where activations pass.

        Args:
            queries: as in :meth:`run_with_cache`.
            texts: as there.
            fwd_hooks: a hook point's name, or a function of the name, and what is called there: ``fn(activation,
                hook)``. What it returns, unless None, takes the activation's place.

        Returns:
            scores ``[len(texts)]``, with gradients unless you turn them off.

        Raises:
            KeyError: there is no such hook point.
            ValueError: queries and texts are no pairs.
        """
        from pyterrier_mechir.lens.bridge import run_with_hooks

        return run_with_hooks(self, queries, texts, fwd_hooks)

    def scorer(self, *, text_field: str = "text", batch_size: int | None = None, verbose: bool = False) -> Scorer:
        """A plain re-ranker: a ``pt.Transformer`` that gives each (query, document) the ranker's score, and ranks.

        Args:
            text_field: column of the document text.
            batch_size: documents in a forward pass; None batches by length.
            verbose: show a progress bar.
        """
        from pyterrier_mechir.stages.scorer import Scorer

        return Scorer(self, text_field=text_field, batch_size=batch_size, verbose=verbose)

    def score(
        self, queries: Sequence[str], texts: Sequence[str], *, batch_size: int | None = None, verbose: bool = False
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
        import torch

        if self.varies == "query":
            return self.facing("document").score(queries, texts, batch_size=batch_size, verbose=verbose)
        from pyterrier_mechir.models.products import packed_products

        scores = np.empty(len(texts), dtype=np.float32)
        with torch.no_grad(), packed_products(self.anatomy):
            for part in self.parts(queries, texts, batch_size=batch_size, verbose=verbose):
                encoded = self.encode(part.batch)
                scores[part.rows] = self.compare(encoded[part.places], part.inputs).cpu().numpy()
        return scores

    def parts(
        self, queries: Sequence[str], texts: Sequence[str], *, batch_size: int | None = None, verbose: bool = False
    ) -> Iterator[Part]:
        """The batches that :meth:`score`, whose arguments these are, computes; every row is in one."""
        distinct, which_query = unique(queries)
        items, which_item = unique(list(zip(which_query, texts, strict=True)) if self.reads_query else texts)
        of_items = items if self.reads_query else [(0, text) for text in items]
        query_tokens = self._tokens("query", distinct)
        documents = self._tokens("document", [text for _, text in of_items])
        sequences = [self._plain(query_tokens[q], d) for (q, _), d in zip(of_items, documents, strict=True)]
        rows_of_item: list[list[int]] = [[] for _ in items]
        for row, item in enumerate(which_item):
            rows_of_item[item].append(row)
        inputs = self.query_inputs(distinct)
        for index in self._batches([len(s.ids) for s in sequences], batch_size, verbose):
            rows = [row for i in index for row in rows_of_item[i]]
            places = [place for place, i in enumerate(index) for _ in rows_of_item[i]]
            batch = self.collate([sequences[i] for i in index], {}, [])
            of_rows = {name: value[[which_query[row] for row in rows]] for name, value in inputs.items()}
            yield Part(batch, rows, places, {name: value[places] for name, value in batch.items()} | of_rows)

    def check_positions(self, positions: Positions, to_receivers: bool = False) -> None:  # noqa: B027 - most can all
        """Check that the positions of a sequence can be patched apart, and paths to receivers.

        Args:
            positions: which positions are patched together.
            to_receivers: whether only paths to receivers are patched.

        Raises:
            ValueError: they cannot.
        """

    def facing(self: Self, side: str) -> Self:
        """This ranker with pairs that vary on one side, the other side being the same for both.

        Args:
            side: ``document`` or ``query``.
        """
        if one_of("side", side, ("document", "query")) == self.varies:
            return self
        other = copy(self)
        other.varies = side
        return other

    def attach(self: Self, autoencoder: Autoencoder, site: str) -> Self:
        """This ranker with an autoencoder that tells features of an activation, so that these can be patched.

        ``PatchScorer(ranker.attach(autoencoder, "L5.resid_post"), "resid_post.feature", heads=[(5, 12)])``, or
        ``heads=["L5.resid_post.F12"]``, patches feature 12: the activation moves by what the change of the feature
        makes, and what the autoencoder leaves out stays as it is.

        Args:
            autoencoder: anything with ``encode`` and ``decode``, such as a
                :class:`~pyterrier_mechir.SparseAutoencoder` or one of SAELens.
            site: ``attn_out``, ``mlp_out``, ``resid_pre``, ``resid_mid`` or ``resid_post`` of a layer:
                ``"L5.resid_post"``.

        Raises:
            TypeError: the autoencoder has no ``encode`` and ``decode``.
            ValueError: no such site, or an autoencoder of another width.
        """
        from pyterrier_mechir.models.autoencoder import n_features

        at = parse_site(site)
        if not isinstance(at, Site) or f"{at.component}.feature" not in FEATURES or at.layer >= self.n_layers:
            names = ", ".join(name.removesuffix(".feature") for name in FEATURES)
            raise ValueError(
                f"{site!r} cannot have an autoencoder; name one of {names}, of layers 0 to {self.n_layers - 1}, such "
                "as 'L0.resid_post'."
            )
        made = copy(self)
        count = n_features(autoencoder, self.model.config.hidden_size, self.device)
        made.anatomy = self.anatomy.attach((at.layer, COMPONENTS[at.component]), autoencoder, count)
        return made

    def align(
        self,
        contexts: Sequence[str],
        baselines: Sequence[str],
        perturbed: Sequence[str],
        *,
        alignments: Sequence[str],
        filler: Filler | Sequence[Filler] = "a",
    ) -> list[AlignedPair | None]:
        """Encode minimal pairs so that their sides correspond position by position.

        Args:
            contexts: what is the same on both sides of each pair: its query, or its document where queries vary (see
                :meth:`facing`).
            baselines: its baseline text.
            perturbed: its perturbed text.
            alignments: the declared alignment of its perturbation.
            filler: what stands where the other side has an insertion: ``"a"``, any single-token word, ``"mask"``,
                ``"pad"``, ``"random"`` or a :class:`~pyterrier_mechir.perturb.RandomFiller`; or a list of these.

        Returns:
            The pairs; None for one whose edit does not fit into the model's length. Several fillers, or draws of one,
            give all pairs with the first, then all with the second, and so on. ``pair.query`` indexes the distinct
            contexts in their order of appearance.

        Warns:
            UserWarning: documents were cut to the model's length, or left out; how many, and why.

        Raises:
            ValueError: a ``free`` perturbation, whose sides do not correspond, or an unusable filler.
        """
        if "free" in alignments:
            raise ValueError(
                "a perturbation of alignment 'free' has sides that do not correspond, so no activation of one can be "
                "put into the other; declare another alignment, or compare the scores of both sides with PairScorer."
            )
        distinct, which_context = unique(contexts)
        split, spellings = self.vocabulary.split_marks, self.vocabulary.spellings
        fixed_tokens = [split(tokens) for tokens in self._tokens(self._fixed_side, distinct)]
        n, sides = len(contexts), self._sides(baselines, perturbed)
        fillers = self._made_fillers(filler)
        pairs: list[list[AlignedPair | None]] = [[] for _ in range(len(fillers))]
        counts: Counter[str] = Counter()
        for i, (context, alignment, of_pair) in enumerate(zip(which_context, alignments, sides, strict=True)):
            aligned = align(of_pair[0], of_pair[1], spellings, alignment, len(self._ending(self.varies)))
            kept = None
            if aligned is None:
                counts["other"] += 1
            else:
                fixed_room, room = self._rooms(len(fixed_tokens[context]), len(aligned))
                kept = keep_edit(aligned, room, self._cuts_left, self._ending(self.varies))
                counts["cut" if kept else "lost"] += len(aligned) > room and bool(aligned.edit.any())
            if kept is None:
                for of_filler in pairs:
                    of_filler.append(None)
                continue
            query = baselines[i] if self.varies == "query" else contexts[i]
            fixed = self._cut(fixed_tokens[context], fixed_room, self._fixed_side)
            classes = token_classes(kept, fixed, spellings, self.varies)
            masked = alignment == "mask"
            of_position = (
                [self._masked_ids(len(kept))] * len(fillers) if masked else fillers.ids(kept, query, baselines[i])
            )
            for ids, of_filler in zip(of_position, pairs, strict=True):
                of_filler.append(self._pair(fixed, context, kept, classes, ids, masked))
        self._warn_of(counts, n)
        return [pair for of_filler in pairs for pair in of_filler]

    def cuts(self, contexts: Sequence[str], texts: Sequence[str]) -> np.ndarray:
        """Whether each text, beside its context, is longer than the ranker takes: bool ``[len(texts)]``.

        Args:
            contexts: the query of each text, or its document where queries vary (see :meth:`facing`).
            texts: the texts.
        """
        fixed = [Tokens(*np.empty((2, 0)))] * len(texts)
        if self.reads_query:
            fixed = self._tokens(self._fixed_side, contexts)
        varied = self._tokens(self.varies, texts)
        rooms = (self._rooms(len(one), len(other))[1] for one, other in zip(fixed, varied, strict=True))
        return np.array([len(tokens) > room for tokens, room in zip(varied, rooms, strict=True)], dtype=bool)

    def _warn_of(self, counts: Mapping[str, int], n: int) -> None:
        what = "queries" if self.varies == "query" else "documents"
        longer = f"are longer than the {self.max_length} tokens that {self!r} takes"
        of_kind = {
            "cut": f"{longer}; they were cut so that the perturbation stays.",
            "lost": f"{longer} and cannot be cut without losing the perturbation; their effects are missing.",
            "other": "have other words after a perturbation that should only move them; their effects are missing.",
        }
        for kind, sentence in of_kind.items():
            if counts[kind]:
                warnings.warn(f"{counts[kind]} of {n} {what} {sentence}", stacklevel=3)

    def collate(self, sequences: Sequence[Encoded], query_inputs: Batch, queries: Sequence[int]) -> Batch:
        """Pad sequences into a batch.

        Args:
            sequences: ``B`` sequences.
            query_inputs: from :meth:`query_inputs`.
            queries: the row of each sequence's query.

        Returns:
            ``input_ids``, ``attention_mask`` and, where the tokenizer has them, ``token_type_ids``, ``[B, S]``, and
            the rows of the query inputs, all on the ranker's device.
        """
        import torch

        pad = self.tokenizer.pad_token_id or 0
        width = max(len(s.ids) for s in sequences)
        ids, types, mask = (np.full((len(sequences), width), fill, dtype=np.int64) for fill in (pad, 0, 0))
        for row, sequence in enumerate(sequences):
            n = len(sequence.ids)
            ids[row, :n], types[row, :n], mask[row, :n] = sequence.ids, sequence.types, sequence.mask
        arrays = {"input_ids": ids, "attention_mask": mask}
        if "token_type_ids" in self.tokenizer.model_input_names:
            arrays["token_type_ids"] = types
        batch = {name: torch.from_numpy(array).to(self.device) for name, array in arrays.items()}
        return batch | {name: value[list(queries)] for name, value in query_inputs.items()}

    def _made_fillers(self, filler: Filler | Sequence[Filler]) -> Fillers:
        key = filler if isinstance(filler, (str, RandomFiller)) else tuple(filler)
        if key not in self._fillers:
            self._fillers[key] = Fillers(filler, self.vocabulary)
        return self._fillers[key]

    def _masked_ids(self, n: int) -> np.ndarray:
        """Ids of positions to which nothing attends: not padding, which has no position number in RoBERTa."""
        return np.full(n, self.vocabulary.words[0] if len(self.vocabulary.words) else 0, dtype=np.int64)

    def _parts(self, fixed: np.ndarray, varied: np.ndarray) -> tuple[np.ndarray, ...]:
        """The parts of a sequence in their order."""
        if not self.reads_query:
            return (varied,)
        return (fixed, varied) if self.varies == "document" else (varied, fixed)

    def _rooms(self, n_fixed: int, n_varied: int) -> tuple[int, int]:
        """How many tokens of the fixed and of the varied part fit."""
        if self.varies == "document" or not self.reads_query:
            return self._room(n_fixed, n_varied)
        n_varied, n_fixed = self._room(n_varied, n_fixed)
        return n_fixed, n_varied

    def _plain(self, query: Tokens, document: Tokens) -> Encoded:
        query_room, room = self._room(len(query), len(document))
        parts = self._parts(self._cut(query, query_room, "query").ids, self._cut(document, room, "document").ids)
        ids, types, owners = self._template.build(*parts)
        return Encoded(ids, types, (owners != UNATTENDED).astype(np.int64))

    def _pair(
        self,
        fixed: Tokens,
        number: int,
        aligned: Alignment,
        classes: tuple[np.ndarray, np.ndarray],
        fillers: np.ndarray,
        masked: bool,
    ) -> AlignedPair:
        """The sequences of an aligned pair, whose fillers are attention-masked where ``masked``."""
        filled = with_fillers(aligned, fillers)
        varied = int(self.reads_query and self.varies == "document")
        sides = []
        for ids, before in ((filled.baseline, aligned.baseline), (filled.perturbed, aligned.perturbed)):
            ids, types, owners = self._template.build(*self._parts(fixed.ids, ids))
            mask = (owners != UNATTENDED).astype(np.int64)
            if masked:
                mask[owners == varied] = before != FILL
            sides.append(Encoded(ids, types, mask))
        of_positions, words = np.full(len(owners), SEP), np.full(len(owners), SPECIAL)
        of_positions[:1] = CLS
        of_parts = zip(self._parts(*classes), self._parts(fixed.words, aligned.perturbed_words), strict=True)
        for part, (classes_of_part, words_of_part) in enumerate(of_parts):
            of_positions[owners == part], words[owners == part] = classes_of_part, words_of_part
            ending = self._template.affixes[part].ending
            last = np.flatnonzero(owners == part)[len(words_of_part) - len(ending) :]
            if all(np.array_equal(side.ids[last], ending) for side in sides):
                of_positions[last] = SEP
        return AlignedPair(sides[0], sides[1], of_positions, number, owners, words)

    def _sides(self, baselines: Sequence[str], perturbed: Sequence[str]) -> Iterator[tuple[Tokens, Tokens]]:
        """The tokens of both sides of pairs, as they correspond (see :func:`~.encoding.ended_alike`)."""
        texts, which = unique([*baselines, *perturbed])
        tokens = [self.vocabulary.split_marks(tokens) for tokens in self._tokens(self.varies, texts)]
        n_last, apart = len(self._ending(self.varies)), tokens
        if n_last:
            ended = self._template.tokens_apart(self.tokenizer, int(self.varies == "document"), texts)
            apart = [self.vocabulary.split_marks(tokens) for tokens in ended]
        for pair in zip(which[: len(baselines)], which[len(baselines) :], strict=True):
            one, other = (tokens[text] for text in pair)
            yield ended_alike((one, other), [apart[text] for text in pair], n_last) if n_last else (one, other)

    def _ending(self, side: str) -> np.ndarray:
        """The tokens of line breaks that the template has after queries or documents."""
        return self._template.affixes[int(side == "document")].ending

    def _cut(self, tokens: Tokens, room: int, side: str) -> Tokens:
        """The first tokens and what the template has after them, or the last where the tokenizer cuts on the left."""
        if self._cuts_left:
            return tokens[max(0, len(tokens) - room) :]
        if len(tokens) <= room:
            return tokens
        ending = self._ending(side)
        return tokens[: max(0, room - len(ending))] + Tokens(ending, np.full(len(ending), -1))

    def _room(self, n_query: int, n_document: int) -> tuple[int, int]:
        """How many tokens of a query and of a document fit; the longer is cut first, as transformers does."""
        room = self.max_length - self._template.n_special
        if not self.reads_query:
            return n_query, room
        if n_query + n_document <= room:
            return n_query, n_document
        shorter = min(n_query, n_document)
        if shorter > room // 2:
            shorter, longer = room // 2, room - room // 2
        else:
            longer = room - shorter
        return (longer, shorter) if n_query > n_document else (shorter, longer)

    @property
    def _fixed_side(self) -> str:
        return "query" if self.varies == "document" else "document"

    def _tokens(self, side: str, texts: Sequence[str]) -> list[Tokens]:
        """The tokens of queries or documents, with what the template puts right beside them."""
        return self._template.tokens(self.tokenizer, int(side == "document"), texts)

    def _batches(
        self, lengths: Sequence[int], batch_size: int | None = None, verbose: bool = False
    ) -> Iterator[np.ndarray]:
        import pyterrier as pt

        size = np.asarray(lengths, dtype=np.int64)
        groups = by_length(size, self.batch_tokens, batch_size)
        if not verbose:
            yield from groups
            return
        with pt.tqdm(total=len(size), desc=repr(self), unit="doc") as bar:
            for index in groups:
                yield index
                bar.update(len(index))

    @property
    def short_name(self) -> str:
        """The last part of the name: ``all-MiniLM-L6-v2``."""
        return Path(self.name).name

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.short_name!r})"

    def _repr_html_(self) -> str:
        from pyterrier_mechir.notebook import ranker_html

        return ranker_html(self)

    def _key(self) -> tuple[Any, ...]:
        attached = tuple((key, id(autoencoder)) for key, (autoencoder, _) in self.anatomy.autoencoders.items())
        return (type(self), self._checkpoint, self.dtype, self.max_length, *self._settings().values(), attached)

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, Ranker) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "lens"}
