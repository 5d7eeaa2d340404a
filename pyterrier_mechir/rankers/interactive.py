"""What a ranker offers by hand: a re-ranking stage, a TransformerLens bridge, a view in notebooks.

The stages, the bridge and the notebook view stand above the rankers and know them; here alone a ranker knows of these,
within functions.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pyterrier_mechir.rankers.base import Ranker

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from transformer_lens import ActivationCache
    from transformer_lens.hook_points import HookPoint
    from transformers import PreTrainedModel

    from pyterrier_mechir.lens.bridge import Hook, Lens, NamesFilter
    from pyterrier_mechir.stages.scorer import Scorer


Self = TypeVar("Self", bound="Interactive")


class Interactive(Ranker):
    """A ranker as users have it; every family derives from this."""

    @property
    def lens(self) -> Lens:
        """A TransformerLens bridge on the ranker's weights, for interactive work; made when it is first asked for.

        It returns what the model does (logits, or the last hidden states), and attends eagerly. Its hook points have
        the names that :meth:`sites` lists. The ranker does not notice it: its modules are its own, only the weights are
        the same. Each thread has its own, and another one where parts of the model were replaced since.
        """
        from pyterrier_mechir.lens.bridge import Lens

        if self.edits:
            raise ValueError(f"{self!r} is edited, which its lens would not be; use the lens of the ranker itself.")
        kept = getattr(self._of_thread, "lens", None)
        if kept is None or kept[0] is not self.twin:
            self.keep_lens(Lens(self))
        lens: Lens = self._of_thread.lens[1]
        return lens

    def keep_lens(self, lens: Lens) -> None:
        """Have a bridge as the running thread's :attr:`lens`."""
        self._of_thread.lens = (self.twin, lens)

    @property
    def _of_thread(self) -> Any:
        return vars(self).setdefault("_lenses", threading.local())

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

    def edited(self: Self, edits: Any, side: str = "both", *, reference: Any = None) -> Self:
        """This ranker under edits: a ranker like any other, of the same class; this one stays as it is.

        Scores, re-ranking, patching, attention and layer scores are those of the model as the edits change it; its
        ``repr``, ``about()``, equality and hash tell the edits. Edits of edited rankers come after theirs.

        Args:
            edits: one or several of :class:`~pyterrier_mechir.Scale`, :class:`~pyterrier_mechir.Ablate` and
                :class:`~pyterrier_mechir.Add`, each of another site. monoT5's are of the stack that is patched.
            side: of rankers that encode queries and documents apart, which of them are edited: ``both``, ``query`` or
                ``document``.
            reference: what means and resampled activations are taken from, by edits that have none of their own: a
                frame with ``query`` and ``text``, a list of texts, or what :func:`~pyterrier_mechir.head_means` gives.

        Raises:
            TypeError: something that is no edit.
            ValueError: a site that the ranker does not have, a vector of another width, two edits of one site, a mean
                without a reference, or one side of a ranker that reads both together.
        """
        from pyterrier_mechir.interventions.edited import edited

        return edited(self, edits, side, reference)

    def bake(self) -> PreTrainedModel:
        """A transformers model of the same class that computes what this ranker computes under its edits.

        The edits are in its weights, which are its own: this ranker, the one that was edited and the model that was
        given stay as they are. Of an unedited ranker it is a copy. Where an edit adds a constant and a linear map has
        no bias, the map is given one if the config of the model has a switch for it (Llama, ModernBERT).

        A ColBERT's projection, and what a bi-encoder does after its encoder, are no part of the model;
        :meth:`save_pretrained` writes them too.

        Raises:
            ValueError: an edit that weights cannot hold (what differs from text to text, a factor of the stream of a
                pre-norm model, a constant without a bias), an edit of one side alone, or a model in reduced precision
                or with an adapter; the message says why, and what can be done instead.
        """
        from pyterrier_mechir.interventions.baking import bake

        return bake(self)

    def save_pretrained(
        self, directory: str | Path, *, effects: pd.DataFrame | None = None, sample: pd.DataFrame | None = None
    ) -> Path:
        """Write this ranker with its edits as a checkpoint that others load without this package.

        transformers loads it, and sentence-transformers where the family is one of its own: bi-encoders (with pooling,
        projection, normalisation, similarity, prompts and lengths, be the original one of sentence-transformers or
        not), Splade and ColBERT always, cross-encoders as plain checkpoints or with their prompt and length. A
        bi-encoder whose queries are edited otherwise than its documents becomes a ``Router`` of two encoders.
        :func:`~pyterrier_mechir.load_ranker` reads the directory back with all of this ranker's settings, and its class
        with those that the formats hold.

        Beside it stand ``mechir_edits.json`` (what it was made of: the name and a digest of the weights of the ranker
        without its edits, the edits, versions, and how far the scores of the files are off at most) and a draft of a
        model card, ``README.md``. All is written beside ``directory``, loaded and scored, and moved there at last.

        Args:
            directory: where; it does not exist, or is empty.
            effects: what the edits do to the ranking, as ``RankingEffects`` gives it: ``docno``, ``measure``,
                ``value``, ``score``, ``ci_low``, ``ci_high`` and ``p_adjusted``, for the card.
            sample: pairs whose scores are compared, with ``query`` and ``text``; None takes some sentences.

        Returns:
            The directory.

        Raises:
            ValueError: as :meth:`bake`; one side of a Splade or ColBERT edited alone; settings that the format cannot
                hold; a directory that exists and is not empty; or files that score otherwise than this ranker.
            pt.validate.InputValidationError: ``effects`` or ``sample`` lacks a column.
        """
        from pyterrier_mechir.interventions.saving import save_pretrained

        return save_pretrained(self, directory, effects, sample)

    def scorer(self, *, text_field: str = "text", batch_size: int | None = None, verbose: bool = False) -> Scorer:
        """A plain re-ranker: a ``pt.Transformer`` that gives each (query, document) the ranker's score, and ranks.

        Args:
            text_field: column of the document text.
            batch_size: documents in a forward pass; None batches by length.
            verbose: show a progress bar.
        """
        from pyterrier_mechir.stages.scorer import Scorer

        return Scorer(self, text_field=text_field, batch_size=batch_size, verbose=verbose)

    def _repr_html_(self) -> str:
        from pyterrier_mechir.notebook import ranker_html

        return ranker_html(self)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lenses"}
