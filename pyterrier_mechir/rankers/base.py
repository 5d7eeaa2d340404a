"""What every ranker has: a checkpoint, how it encodes a pair, and how it scores."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from copy import copy, deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
import pandas as pd

from pyterrier_mechir._options import one_of
from pyterrier_mechir.models.anatomy import Anatomy
from pyterrier_mechir.models.batching import tokens_at_once
from pyterrier_mechir.models.components import CODED_COMPONENTS, COMPONENTS
from pyterrier_mechir.models.modes import as_alone
from pyterrier_mechir.models.sites import Site, parse_site
from pyterrier_mechir.rankers.lengths import check_length, check_vocabulary, n_positions, within
from pyterrier_mechir.rankers.running import Running
from pyterrier_mechir.text.encoding import AlignedPair, Template
from pyterrier_mechir.text.fillers import Filler, Fillers
from pyterrier_mechir.text.sequences import Sequences
from pyterrier_mechir.text.vocabulary import Vocabulary

if TYPE_CHECKING:
    from pyterrier_mechir.models.autoencoder import Autoencoder
    from pyterrier_mechir.models.edits import Edit
    from pyterrier_mechir.text.positions import Positions


Self = TypeVar("Self", bound="Ranker")

DTYPES = ("float32", "bfloat16", "float16", "float64")

REDUCED = ("bfloat16", "float16")
"""Those in which only the products of the layers are computed."""

UNLIMITED = 100_000
"""Tokenizers without a length limit of their own report a huge number; models give theirs."""


class Ranker(Running):
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
        model: the transformers model. What runs is its :attr:`twin`.
        anatomy: its parts.
        tokenizer: its tokenizer, which is left alone: a copy of it reads texts, as it was when the ranker was made.
        vocabulary: the tokens of that copy, as words.

    Raises:
        ValueError: the checkpoint cannot be loaded, its architecture is not supported, or its tokenizer is not fast.
    """

    _read_apart: ClassVar[tuple[str, ...]] = ()
    """Weights of a checkpoint that are no model's of transformers, and that the ranker reads itself."""

    def __init__(
        self,
        model: str | Path | tuple[Any, Any],
        *,
        max_length: int | None,
        device: str | None,
        dtype: str,
        auto_class: str,
        declared_length: int | None = None,
        subfolder: str = "",
        lowercase: bool = False,
    ):
        import torch
        import transformers

        from pyterrier_mechir.models.checkpoints import infer_device, load_checkpoint, lowercased
        from pyterrier_mechir.models.precision import check_precision, precision_of, reduce_products
        from pyterrier_mechir.models.twins import Twins, unwrapped

        precision = getattr(torch, one_of("dtype", dtype, DTYPES))
        if isinstance(model, tuple):
            own, self.tokenizer = unwrapped(model[0]), model[1]
            self.model = own if dtype not in REDUCED else deepcopy(own)
            self.name = type(self.model).__name__
            self._checkpoint = id(self.model)
            to_device = self.model.device if device is None else torch.device(device)
        else:
            self.name = self._checkpoint = str(model)
            auto = getattr(transformers, auto_class)
            loaded = "auto" if dtype in REDUCED else precision
            self.model, self.tokenizer = load_checkpoint(self.name, auto, subfolder, loaded, self._read_apart)
            to_device = infer_device(device)
        if dtype in REDUCED:
            reduce_products(self.model, precision)
        check_precision(precision_of(self.model), to_device)
        if not self.tokenizer.is_fast:
            raise ValueError(f"{type(self.tokenizer).__name__} is not a fast tokenizer; load it with use_fast=True.")
        if lowercase:
            self.tokenizer = lowercased(self.tokenizer)
        self._twins = Twins(self.model)
        self.anatomy = Anatomy(self.twin)
        self.model.to(to_device).eval()  # type: ignore[arg-type]
        self.dtype = dtype
        self.batch_tokens = tokens_at_once(self.device)
        self._cuts_left = self.tokenizer.truncation_side == "left"
        self.vocabulary = Vocabulary(deepcopy(self.tokenizer))
        self._template = self._made_template()
        if max_length is None:
            max_length = within(self.model, declared_length) or self._longest()
        self.max_length = self._checked("max_length", max_length)
        check_vocabulary(len(self.vocabulary.spellings), self.model)
        self._fillers: dict[Any, Fillers] = {}

    @property
    def sequences(self) -> Sequences:
        """How texts become the sequences that the model reads."""
        return Sequences(
            self._template,
            self.vocabulary.tokenizer,
            self.vocabulary,
            self.max_length,
            self.reads_query,
            self.varies,
            repr(self),
            cuts_left=self._cuts_left,
            known_fillers=self._fillers,
        )

    def _made_template(self) -> Template:
        """What surrounds the texts in every sequence."""
        return Template.of(self.vocabulary.tokenizer, pair=self.reads_query)

    def _checked(self, name: str, length: int) -> int:
        return check_length(name, length, self._template, self.model, type(self).__name__)

    def _longest(self) -> int:
        positions = n_positions(self.model)
        if positions is None:
            positions = int(getattr(self.model.config, "max_position_embeddings", UNLIMITED))
        return int(min(positions, self.tokenizer.model_max_length))

    @property
    def n_layers(self) -> int:
        return self.anatomy.n_layers

    @property
    def n_heads(self) -> int:
        return self.anatomy.n_heads

    @abstractmethod
    def _settings(self) -> dict[str, Any]: ...

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

    def check_positions(self, positions: Positions, to_receivers: bool = False) -> None:
        """Check that the positions of a sequence can be patched apart, and paths to receivers.

        Args:
            positions: which positions are patched together.
            to_receivers: whether only paths to receivers are patched.

        Raises:
            ValueError: this ranker's sequences do not allow it.
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

    @as_alone()
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
        if not isinstance(at, Site) or f"{at.component}.feature" not in CODED_COMPONENTS or at.layer >= self.n_layers:
            names = ", ".join(name.removesuffix(".feature") for name in CODED_COMPONENTS)
            raise ValueError(
                f"{site!r} cannot have an autoencoder; name one of {names}, of layers 0 to {self.n_layers - 1}, such "
                "as 'L0.resid_post'."
            )
        made = copy(self)
        count = n_features(autoencoder, self.model.config.hidden_size, self.device)
        made.anatomy = self.anatomy.attach((at.layer, COMPONENTS[at.component]), autoencoder, count)
        return made

    def under(self: Self, edits: Sequence[Edit], side: str = "both") -> Self:
        """This ranker with edits of its model, which stays as it is.

        Args:
            edits: as the model applies them.
            side: of rankers that encode queries and documents apart, which is edited: ``both``, ``query`` or
                ``document``.
        """
        from pyterrier_mechir.models.edits import EditedTwins

        made = copy(self)
        if side in ("both", self.varies):
            made._twins = EditedTwins(self._twins, edits)
        return made

    def with_model(self: Self, model: Any) -> Self:
        """This ranker with another model in the place of its own, under the same edits.

        Args:
            model: a transformers model of the same class and shape.
        """
        made = copy(self)
        made.model, made._checkpoint = model, id(model)
        made._twins, made.anatomy = self._twins.of_model(model), self.anatomy.of(model)
        return made

    def align(
        self,
        contexts: Sequence[str],
        baselines: Sequence[str],
        perturbed: Sequence[str],
        *,
        alignments: Sequence[str],
        filler: Filler | Sequence[Filler] = "a",
        located: bool = False,
    ) -> list[AlignedPair | None]:
        """Encode minimal pairs so that their sides correspond position by position.

        Args:
            contexts: what is the same on both sides of each pair: its query, or its document where queries vary (see
                ``facing``).
            baselines: its baseline text.
            perturbed: its perturbed text.
            alignments: the declared alignment of its perturbation.
            filler: what stands where the other side has an insertion: ``"a"``, any single-token word, ``"mask"``,
                ``"pad"``, ``"random"`` or a :class:`~pyterrier_mechir.perturb.RandomFiller`; or a list of these.
            located: whether to tell which characters of the baseline text each token is made of (``pair.spans``).

        Returns:
            The pairs; None for one whose edit does not fit into the model's length. Several fillers, or draws of one,
            give all pairs with the first, then all with the second, and so on. ``pair.query`` indexes the distinct
            contexts in their order of appearance.

        Warns:
            UserWarning: documents were cut to the model's length, or left out; how many, and why.

        Raises:
            ValueError: a ``free`` perturbation, whose sides do not correspond, or an unusable filler.
        """
        return self.sequences.aligned(contexts, baselines, perturbed, alignments, filler, located)

    def cuts(self, contexts: Sequence[str], texts: Sequence[str]) -> np.ndarray:
        """Whether each text, beside its context, is longer than the ranker takes: bool ``[len(texts)]``.

        Args:
            contexts: the query of each text, or its document where queries vary (see ``facing``).
            texts: the texts.
        """
        return self.sequences.cuts(contexts, texts)
