"""The ways of explaining a score by the units of its text: one table, and one door."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyterrier_mechir._options import one_of
from pyterrier_mechir.models.modes import as_alone
from pyterrier_mechir.observe.words.explained import Asked, Explained
from pyterrier_mechir.text.units import UNITS

if TYPE_CHECKING:
    from pyterrier_mechir.observe.words.absence import Absence
    from pyterrier_mechir.observe.words.readings import Reading
    from pyterrier_mechir.rankers.base import Ranker

METHODS = ("occlusion", "gradient", "ig", "lime", "terms")
"""What ``ExplainScore(method=...)`` takes."""

LEAVING_OUT = ("occlusion", "lime")
"""Those that score texts without some of their units, so that units can be absent in any way."""

WITHOUT_ABSENCE = ("gradient", "terms")
"""Those that leave nothing out."""


def check_asked(asked: Asked, ranker: Ranker, of: str) -> None:
    """Check that a ranker's scores can be explained in some way.

    Args:
        asked: how they are explained.
        ranker: the ranker.
        of: ``document`` or ``query``.

    Raises:
        TypeError: an absence that is none.
        ValueError: an unknown option, or one that the method or the ranker cannot do.
    """
    from pyterrier_mechir.observe.words.absence import KEPT_LENGTH, Absent
    from pyterrier_mechir.observe.words.interactions import check_interactions
    from pyterrier_mechir.observe.words.terms import SUMS

    one_of("method", asked.method, METHODS)
    one_of("unit", asked.unit, UNITS)
    one_of("of", of, ("document", "query"))
    if asked.all_occurrences and asked.method not in LEAVING_OUT:
        raise ValueError(f"all_occurrences=True leaves words out together, which method={asked.method!r} does not.")
    if asked.method == "terms" and not isinstance(ranker, SUMS):
        names = " or ".join(kind.__name__ for kind in SUMS)
        raise ValueError(
            f"method='terms' takes a score apart that is a sum over tokens, of a {names}; that of {ranker!r} is none: "
            "give 'occlusion', 'ig', 'lime' or 'gradient'."
        )
    if asked.interactions:
        if of == "query" or asked.method not in ("ig", "terms"):
            raise ValueError("interactions=True goes with of='document' and method='ig' or 'terms'.")
        if asked.method == "ig":
            check_interactions(ranker)
    if asked.method == "ig" and asked.absence in ("delete", "attention"):
        raise ValueError(
            f"absence={asked.absence!r} leaves no embeddings to go from, which 'ig' needs; give "
            f"{KEPT_LENGTH.replace('attention, ', '')}."
        )
    if asked.absence is None:
        return
    if asked.method in WITHOUT_ABSENCE:
        raise ValueError(
            f"method={asked.method!r} leaves no words out, so that nothing is absent; leave out "
            f"absence={asked.absence!r}."
        )
    Absent(ranker.facing(of), asked.absence)


def columns_of(asked: Asked, ranker: Ranker) -> tuple[str, ...]:
    """The columns that a method has beside those that all have.

    Args:
        asked: how scores are explained.
        ranker: the ranker.
    """
    from pyterrier_mechir.rankers.splade import Splade

    names: tuple[str, ...] = ("unit_errors", "fit_r2") if asked.method == "lime" else ()
    if asked.method == "terms" and isinstance(ranker, Splade):
        names = ("terms", "term_scores", "term_units")
    if asked.interactions:
        names = (*names, "query_units", "interactions", *(("interaction_terms",) if asked.method == "ig" else ()))
    return names


def default_absence(method: str, ranker: Ranker) -> Absence | None:
    """What stands for an absent unit where nothing is asked for: ``delete``, and for ``ig`` a mask, else ``random``."""
    if method != "ig":
        return None if method in WITHOUT_ABSENCE else "delete"
    return "random" if ranker.vocabulary.tokenizer.mask_token_id is None else "mask"


@dataclass(frozen=True)
class Rows:
    """What is explained, row by row.

    Args:
        contexts: the other side of each text.
        texts: the texts.
        thresholds: for each, the score that ``lime`` asks whether the text is above, NaN for none. None: none has one.
    """

    contexts: Sequence[str]
    texts: Sequence[str]
    thresholds: Sequence[float] | None = None


@as_alone()
def explain(
    ranker: Ranker, rows: Rows, asked: Asked, of: str, progress: Callable[[int], object] | None = None
) -> list[Explained]:
    """Explain scores.

    Args:
        ranker: the ranker.
        rows: what is explained.
        asked: how, as :func:`check_asked` lets pass.
        of: ``document`` or ``query``.
        progress: called with the number of texts done, as they are done.
    """
    from pyterrier_mechir.observe.words.gradients import gradient_times_input, integrated_gradients
    from pyterrier_mechir.observe.words.interactions import interactions
    from pyterrier_mechir.observe.words.left_out import lime, occlusion
    from pyterrier_mechir.observe.words.readings import readings
    from pyterrier_mechir.observe.words.terms import exact_terms

    ways: dict[str, Callable[[Ranker, Sequence[Reading], Asked], Iterator[Explained]]] = {
        "occlusion": occlusion,
        "lime": lime,
        "gradient": gradient_times_input,
        "ig": interactions if asked.interactions else integrated_gradients,
        "terms": exact_terms,
    }
    facing, found = in_encoder(ranker).facing(of), dict[int, Explained]()
    read = readings(facing, rows.contexts, rows.texts, asked.unit, rows.thresholds)
    for one in ways[asked.method](facing, read, asked):
        found[id(one.reading)] = one
        if progress is not None:
            progress(1)
    return [found[id(reading)] for reading in read]


def in_encoder(ranker: Ranker) -> Ranker:
    """A monoT5 with its encoder patched, which reads the text; any other ranker as it is."""
    from pyterrier_mechir.rankers.mono_t5 import MonoT5

    return ranker.on("encoder") if isinstance(ranker, MonoT5) else ranker
