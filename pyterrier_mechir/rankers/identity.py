"""What a ranker is called, and what tells it from others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from pyterrier_mechir.models.anatomy import Anatomy


class Identified:
    """The identity of a ranker: its names, what identifies it in stored results, equality and hash.

    Two rankers are equal that are of the same class, checkpoint (or the same loaded model), precision, length, settings
    and attached autoencoders.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    anatomy: Anatomy
    name: str
    dtype: str
    max_length: int
    _checkpoint: str | int
    edits: tuple[tuple[str, Any], ...] = ()
    """The edits that the model runs under (:mod:`~pyterrier_mechir.interventions.edits`), each with its side."""
    baked_edits: tuple[dict[str, Any], ...] = ()
    """The edits that the weights of the checkpoint hold, as its manifest tells them; those of ``load_ranker`` only."""

    def _settings(self) -> dict[str, Any]:
        """What, beside the checkpoint, decides the scores."""
        raise NotImplementedError

    def _weights(self) -> dict[str, torch.Tensor]:
        """All weights that decide the scores, by name."""
        return self.model.state_dict()

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
            **({"baked_edits": list(self.baked_edits)} if self.baked_edits else {}),
            **({"edits": [{"side": side, **edit.told()} for side, edit in self.edits]} if self.edits else {}),
        }
        if not fingerprint:
            return about
        from pyterrier_mechir.models.checkpoints import fingerprint as digest

        return about | {"weights": digest(self._weights(), self.tokenizer)}

    def _attached(self) -> dict[str, Any]:
        of_site = self.anatomy.autoencoders.items()
        attached = {f"L{layer}.{name}": repr(autoencoder) for (layer, name), (autoencoder, _) in of_site}
        return {"autoencoders": attached} if attached else {}

    @property
    def short_name(self) -> str:
        """The last part of the name: ``all-MiniLM-L6-v2``."""
        return Path(self.name).name

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.short_name!r}{self._told_edits})"

    @property
    def _told_edits(self) -> str:
        """What a repr says of the edits."""
        if len(self.edits) > 3:
            return f", {len(self.edits)} edits"
        of_side = {"both": "", "query": " of queries", "document": " of documents"}
        return "".join(f", {edit!r}{of_side[side]}" for side, edit in self.edits)

    def _key(self) -> tuple[Any, ...]:
        attached = tuple((key, id(autoencoder)) for key, (autoencoder, _) in self.anatomy.autoencoders.items())
        settings = self._settings().values()
        return (type(self), self._checkpoint, self.dtype, self.max_length, *settings, attached, self.edits)

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, Identified) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())
