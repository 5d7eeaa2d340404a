"""Edits as values: what is changed in a ranker, at which site, whatever text it reads."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pyterrier_mechir._options import one_of
from pyterrier_mechir.interventions.means import Means
from pyterrier_mechir.interventions.vectors import Place, place_of
from pyterrier_mechir.rankers.base import Ranker

if TYPE_CHECKING:
    from pyterrier_mechir.models.edits import Affine, Placed

BY = ("zero", "mean", "resample")


class Edit(ABC):
    """A change of what a ranker computes."""

    site: str
    """What is edited; one call of ``ranker.edited`` edits nothing twice."""

    @abstractmethod
    def applied(self, ranker: Ranker) -> tuple[Affine | Placed, ...]:
        """The edit as the model applies it.

        Raises:
            ValueError: the ranker has no such site, or the edit does not fit it.
        """

    @abstractmethod
    def told(self) -> dict[str, Any]:
        """What the edit is, as JSON holds it; arrays by their digests."""

    def resolved(self, ranker: Ranker, reference: Any) -> Edit:
        """The edit with all that it takes from a reference, if it takes anything."""
        return self


@dataclass(frozen=True)
class SiteEdit(Edit):
    """A change of what a ranker computes at one site, at every position.

    Args:
        site: its name: any that ``ranker.sites()`` lists but patterns, such as ``L3H4``, ``L3.mlp_out``, ``L3N17`` or
            ``L3.resid_post``.
    """

    site: str

    @abstractmethod
    def placed(self, ranker: Ranker) -> Affine | Placed:
        """The edit as the model applies it, as ``applied`` says."""

    def applied(self, ranker: Ranker) -> tuple[Affine | Placed, ...]:
        return (self.placed(ranker),)

    def _place(self, ranker: Ranker) -> Place:
        if not isinstance(self.site, str):
            raise ValueError(f"{self.site!r} is no name of a site; write it as 'L3H4' or 'L3.mlp_out'.")
        return place_of(ranker, self.site)


@dataclass(frozen=True)
class Scale(SiteEdit):
    """What passes a site becomes ``factor`` times itself; 0 switches a head off, 1 changes nothing.

    Args:
        site: as in :class:`~pyterrier_mechir.interventions.edits.SiteEdit`.
        factor: the factor.

    Raises:
        ValueError: the factor is no finite number.
    """

    factor: float

    def __post_init__(self) -> None:
        if isinstance(self.factor, bool) or not isinstance(self.factor, (int, float, np.number)):
            raise ValueError(f"the factor of {self.site} is {self.factor!r}; give a number.")
        if not math.isfinite(self.factor):
            raise ValueError(f"the factor of {self.site} is {self.factor}; give a finite number.")

    def placed(self, ranker: Ranker) -> Affine:
        return _affine(ranker, self._place(ranker), scale=float(self.factor))

    def told(self) -> dict[str, Any]:
        return {"edit": "Scale", "site": self.site, "factor": float(self.factor)}


@dataclass(frozen=True)
class Ablate(SiteEdit):
    """What passes a site is replaced by what tells nothing of the text.

    Args:
        site: as in :class:`~pyterrier_mechir.interventions.edits.SiteEdit`.
        by: ``zero``; ``mean``, the mean of the activation over a reference; or ``resample``, the activation of another
            text of the reference, drawn at random and always the same for a text.
        reference: a frame with ``query`` and ``text``, a list of texts, or, for the mean, what
            :func:`~pyterrier_mechir.head_means` gives. None takes that of ``ranker.edited(..., reference=)``.
        per: ``"position class"`` takes a mean for each class of positions
            (:data:`~pyterrier_mechir.interventions.means.POSITION_CLASSES`), which weights cannot hold.
        seed: of the draw of ``resample``.

    Raises:
        ValueError: an unknown option, or ``per`` without ``by="mean"``.
    """

    by: str = "zero"
    reference: Any = None
    per: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        one_of("by", self.by, BY)
        if self.per is not None:
            one_of("per", self.per, ("position class",))
            if self.by != "mean":
                raise ValueError(f"per={self.per!r} is of means; give by='mean' with it.")

    def _key(self) -> tuple[Any, ...]:
        known = self.reference if isinstance(self.reference, Means) else _digest_of(self.reference)
        return self.site, self.by, known, self.per, self.seed

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, Ablate) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        return f"Ablate({self.site!r}, by={self.by!r})"

    def resolved(self, ranker: Ranker, reference: Any) -> Edit:
        given = self.reference if self.reference is not None else reference
        if self.by == "zero":
            return self
        if given is None:
            raise ValueError(
                f"{self!r} takes a reference, whose {'mean' if self.by == 'mean' else 'activations'} it puts there; "
                "give reference=, a frame or texts."
            )
        key, _ = self._place(ranker)
        if self.by == "mean":
            from pyterrier_mechir.interventions.references import known_means

            given = known_means(ranker, given, [key], self.per)
        return replace(self, reference=given)

    def placed(self, ranker: Ranker) -> Affine | Placed:
        from pyterrier_mechir.interventions.references import given_for, placed_at

        key, columns = self._place(ranker)
        given = given_for(ranker, [key], self.by, self.reference, self.per, self.seed)
        return placed_at(key, columns, given[key], ranker.anatomy.cross_attends)

    def told(self) -> dict[str, Any]:
        known = {} if self.reference is None else {"reference": repr(_digest_of(self.reference))}
        options = {"per": self.per} if self.per else {}
        seeded = {"seed": self.seed} if self.by == "resample" else {}
        return {"edit": "Ablate", "site": self.site, "by": self.by, **options, **seeded, **known}


@dataclass(frozen=True, eq=False)
class Add(SiteEdit):
    """A vector is added to what passes a site (Turner et al., 2023; for rankers Parry et al., ECIR 2025).

    Args:
        site: as in :class:`~pyterrier_mechir.interventions.edits.SiteEdit`.
        vector: as wide as the site, ``[d]``.
        alpha: how many times it is added.

    Raises:
        ValueError: ``alpha`` is no finite number, or the vector has some that are not.
    """

    vector: Any
    alpha: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "vector", np.asarray(self.vector, dtype=np.float32))
        if not np.isfinite(self.vector).all() or not math.isfinite(self.alpha):
            raise ValueError(f"what is added at {self.site} has entries that are no finite numbers.")

    def _key(self) -> tuple[Any, ...]:
        return self.site, self.vector.tobytes(), float(self.alpha)

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, Add) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        return f"Add({self.site!r}, {list(self.vector.shape)}, alpha={self.alpha})"

    def placed(self, ranker: Ranker) -> Affine:
        place = _, columns = self._place(ranker)
        if self.vector.shape != (columns.stop - columns.start,):
            raise ValueError(
                f"the vector of {self.site} is of shape {self.vector.shape}; it should be "
                f"({columns.stop - columns.start},)."
            )
        return _affine(ranker, place, shift=float(self.alpha) * self.vector)

    def told(self) -> dict[str, Any]:
        return {"edit": "Add", "site": self.site, "vector": _digest_of(self.vector), "alpha": float(self.alpha)}


def _affine(ranker: Ranker, place: Place, scale: float = 1.0, shift: np.ndarray | None = None) -> Affine:
    import torch

    from pyterrier_mechir.models.edits import Affine

    (key, columns), added = place, None if shift is None else torch.from_numpy(np.array(shift, dtype=np.float32))
    return Affine(key, columns, scale, added, ranker.anatomy.cross_attends)


def _digest_of(thing: Any) -> Any:
    """A short digest of a reference or an array; None for none."""
    if thing is None or isinstance(thing, Means):
        return thing
    if isinstance(thing, np.ndarray):
        return hashlib.blake2b(thing.tobytes(), digest_size=8).hexdigest()
    is_frame = hasattr(thing, "columns")
    rows = thing[[name for name in ("query", "text") if name in thing]].to_numpy().tolist() if is_frame else list(thing)
    return hashlib.blake2b(repr(rows).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def check_edits(edits: Any) -> tuple[Edit, ...]:
    """Check that edits are some, each of another site.

    Raises:
        TypeError: something else than an edit.
        ValueError: two of the same site, which contradict or would be composed in an order that nobody said.
    """
    found = (edits,) if isinstance(edits, Edit) else tuple(edits)
    for edit in found:
        if not isinstance(edit, Edit):
            raise TypeError(f"{edit!r} is no edit; give Scale, Ablate or Add, such as Scale('L3H4', 0.5).")
    sites = [edit.site for edit in found]
    twice = next((site for site in sites if sites.count(site) > 1), None)
    if twice is not None:
        raise ValueError(
            f"{twice} is edited twice; leave one of these edits, or apply them one after the other: "
            "ranker.edited([first]).edited([second])."
        )
    return found
