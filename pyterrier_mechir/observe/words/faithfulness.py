"""How far an explanation by words can be believed: does the score go where it says?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyterrier as pt

from pyterrier_mechir.checks import check_count
from pyterrier_mechir.models.modes import as_alone
from pyterrier_mechir.observe.words.absence import Absence, Absent
from pyterrier_mechir.observe.words.curves import Curves, variants
from pyterrier_mechir.observe.words.measured import Clustered, table
from pyterrier_mechir.observe.words.methods import in_encoder
from pyterrier_mechir.observe.words.orders import (
    BY_IDF,
    QUERY_TERMS,
    RANDOM,
    at_random,
    by_idf,
    by_scores,
    query_terms_first,
)
from pyterrier_mechir.observe.words.readings import Reading, readings
from pyterrier_mechir.observe.words.values import values
from pyterrier_mechir.progress import shown
from pyterrier_mechir.rankers.unwrap import document_ranker
from pyterrier_mechir.results.frames import METADATA, check_columns
from pyterrier_mechir.text.idf import Idf

if TYPE_CHECKING:
    from pyterrier_mechir.rankers.base import Ranker

_OTHERS: tuple[Absence, ...] = ("delete", "mask", "attention", "random")
_AT_ONCE = 64
"""Texts whose variants are made before the next are read."""


@as_alone()
def faithfulness(
    frame: pd.DataFrame | Mapping[str, pd.DataFrame],
    ranker: Ranker,
    *,
    absence: Absence | None = None,
    steps: int = 10,
    n_random: int = 10,
    idf: Any = None,
    ci: float = 0.95,
    n_boot: int = 2000,
    seed: int = 0,
    batch_size: int | None = None,
    verbose: bool = False,
) -> pd.DataFrame:
    """Measure explanations by taking words out of the texts, and putting them back, in the order that they give.

    The words that an explanation says carry the score are taken out first. If it is right, the score falls at once, and
    it rises at once where these words are put back into a text without any. Beside the explanation stand three orders
    that need none: random ones, the rarest words first, and the words of the query first, which is the one to beat.

    Args:
        frame: of :class:`~pyterrier_mechir.ExplainScore`; or several, by the names of what made them, of the same
            rows and units.
        ranker: the ranker whose scores were explained.
        absence: what "taken out" means, as in ``ExplainScore``. A method that leaves words out in one way is at an
            advantage if it is measured in the same, so None takes one that no frame was made with: the first of
            ``delete``, ``mask``, ``attention`` and ``random``.
        steps: points of the curves.
        n_random: random orders of each text, whose mean is one row.
        idf: how rare words are, anything that :meth:`Idf.of <pyterrier_mechir.perturb.Idf.of>` takes; None takes the
            texts of the frame.
        ci: coverage of the intervals.
        n_boot: resamples of queries, by which intervals are made; texts of one query are not independent.
        seed: of random orders and resamples.
        batch_size: sequences in a forward pass; None batches by length.
        verbose: show a progress bar.

    Returns:
        A row for each explanation and for each of the three orders, with ``method`` and

        - ``deletion`` and ``insertion``: areas of the curves, as shares of what all words make, sums over texts divided
          by sums over texts; a faithful explanation has a small deletion area and a great insertion area;
        - ``comprehensiveness`` and ``sufficiency`` (DeYoung et al., 2020): how far the score falls without the first 1
          to 50 % of the words, and with these alone, in score units; the first should be great, the second small;
        - ``ranks_lost``: how many ranks among the documents of its query a text loses on the way of the deletion curve,
          the others staying as they are;

        each with ``_low`` and ``_high``, an interval over queries; ``deletion_over_random`` and
        ``deletion_over_query_terms``: the deletion area less that of these orders, pair by pair, below 0 where the
        explanation is better, with intervals; ``n_queries``, ``n_texts``; and ``deletion_curve`` and
        ``insertion_curve``, float64 ``[steps + 1]``.
        ``attrs["mechir"]["faithfulness"]`` says the absence and the settings.

    Raises:
        pt.validate.InputValidationError: a frame that is no explanation.
        ValueError: frames of other rows, units or sides, or a ranker that reads other units.

    Warns:
        UserWarning: all words together make the score no greater than none do, so that there are no shares.
    """
    check_count("steps", steps)
    check_count("n_random", n_random, 0)
    frames = dict(frame) if isinstance(frame, Mapping) else {_name(frame): frame}
    asked = _asked(frames)
    plain = document_ranker(ranker)
    facing = in_encoder(plain).facing(asked.of)
    first = next(iter(frames.values()))
    of_absence = _another(facing, frames) if absence is None else absence
    absent = Absent(facing, of_absence, seed)
    rarity = Idf.of(first[asked.text_field].tolist() if idf is None else idf)
    rows: list[dict[str, Curves]] = []
    texts = first[asked.explained].tolist()
    contexts = first[asked.context].tolist()
    with pt.tqdm(total=len(texts), desc=repr(plain), unit="doc", disable=not shown(verbose)) as bar:
        for begin in range(0, len(texts), _AT_ONCE):
            some = slice(begin, begin + _AT_ONCE)
            read = readings(facing, contexts[some], texts[some], asked.unit)
            orders = []
            for number, reading in enumerate(read, begin):
                scores = {name: _scores_of(one, number, reading, plain) for name, one in frames.items()}
                of_names = {name: by_scores(values)[None] for name, values in scores.items()}
                of_names |= {RANDOM: at_random(reading, n_random, seed)} if n_random else {}
                of_names[BY_IDF] = by_idf(reading, rarity)[None]
                of_names[QUERY_TERMS] = query_terms_first(reading, reading.context, rarity)[None]
                orders.append(of_names)
            for of_text in _curves(facing, read, orders, absent, steps, batch_size):
                rows.append(of_text)
                bar.update(1)
    if not rows:
        raise ValueError("the frame has no rows; explain some documents first.")
    known = first["score"].to_numpy(dtype=np.float64)
    clustered = Clustered.of(first["qid"].to_numpy(), ci, n_boot, seed)
    out = table(rows, clustered, known if asked.of == "document" else None)
    told = {"absence": of_absence if isinstance(of_absence, str) else repr(of_absence), "steps": steps}
    told |= {"n_random": n_random, "of": asked.of, "unit": asked.unit, "ranker": plain.short_name, "ci": ci}
    out.attrs = {METADATA: {"faithfulness": told}}
    return out


@dataclass(frozen=True)
class _Explains:
    """What frames of explanations have in common."""

    of: str
    unit: str
    text_field: str

    @property
    def explained(self) -> str:
        """The column of the texts that are explained."""
        return "query" if self.of == "query" else self.text_field

    @property
    def context(self) -> str:
        """The column of the other side."""
        return self.text_field if self.of == "query" else "query"


def _name(frame: pd.DataFrame) -> str:
    return str(_scorer(frame).get("method", "explanation"))


def _scorer(frame: pd.DataFrame) -> dict[str, Any]:
    scorer = frame.attrs.get(METADATA, {}).get("scorer", {})
    return scorer if scorer.get("stage") == "ExplainScore" else {}


def _asked(frames: Mapping[str, pd.DataFrame]) -> _Explains:
    """What the frames explain.

    Raises:
        pt.validate.InputValidationError: a column is missing.
        ValueError: there is none, or they are not of the same rows.
    """
    if not frames:
        raise ValueError("give at least one frame of ExplainScore.")
    made = []
    for name, frame in frames.items():
        scorer = _scorer(frame)
        made.append(_Explains(*(scorer.get(key, usual) for key, usual in _USUAL.items())))
        check_columns(frame, ["qid", "query", "docno", made[-1].text_field, "score", "unit_spans", "unit_scores"])
        if name in (RANDOM, BY_IDF, QUERY_TERMS):
            raise ValueError(f"{name!r} is the name of an order that explanations are compared with; choose another.")
    first = next(iter(frames.values()))
    for name, frame in frames.items():
        columns = ["qid", "docno"]
        if len(frame) != len(first) or (frame[columns].to_numpy() != first[columns].to_numpy()).any():
            raise ValueError(
                f"{name!r} has other rows than the first frame; explain the same documents by each method."
            )
    if len(set(made)) > 1:
        raise ValueError("the frames explain other sides, units or text columns; give frames that explain the same.")
    return made[0]


_USUAL = {"of": "document", "unit": "word", "text_field": "text"}


def _another(ranker: Ranker, frames: Mapping[str, pd.DataFrame]) -> Absence:
    """An absence that none of the explanations were made with."""
    used = {_scorer(frame).get("absence") for frame in frames.values()}
    has_mask = ranker.vocabulary.tokenizer.mask_token_id is not None
    return next(one for one in (*_OTHERS, "delete") if one not in used and (one != "mask" or has_mask))


def _scores_of(frame: pd.DataFrame, row: int, reading: Reading, ranker: Ranker) -> np.ndarray:
    """What an explanation gives to each unit that is read."""
    if not np.array_equal(frame["unit_spans"].iloc[row], reading.spans):
        raise ValueError(
            f"the units of docno {frame['docno'].iloc[row]!r} are not those that {ranker!r} reads; give the ranker "
            "that was explained, and frames of the same unit."
        )
    return np.asarray(frame["unit_scores"].iloc[row], dtype=np.float64)[reading.read]


def _curves(
    ranker: Ranker,
    read: Sequence[Reading],
    orders: Sequence[Mapping[str, np.ndarray]],
    absent: Absent,
    steps: int,
    batch_size: int | None,
) -> Iterator[dict[str, Curves]]:
    """The curves of each text by the name of the order; those of several orders of one name are averaged."""
    kept = [
        np.concatenate([variants(order, steps) for of_name in of_text.values() for order in of_name])
        for of_text in orders
    ]
    found = values(ranker, read, kept, absent, batch_size=batch_size)
    for of_text, scores in zip(orders, found, strict=True):
        sizes = np.cumsum([len(of_name) for of_name in of_text.values()])
        of_orders = scores.reshape(int(sizes[-1]), -1)
        of_names = zip(of_text, np.split(of_orders, sizes[:-1]), strict=True)
        yield {name: _mean(part, steps) for name, part in of_names}


def _mean(scores: np.ndarray, steps: int) -> Curves:
    every = [Curves.of(row, steps) for row in scores]
    parts = ([getattr(one, name) for one in every] for name in Curves.__dataclass_fields__)
    deletion, insertion, whole, comprehensiveness, sufficiency, _ = (np.mean(part, axis=0) for part in parts)
    deleted = np.stack([one.deleted for one in every])
    return Curves(deletion, insertion, float(whole), float(comprehensiveness), float(sufficiency), deleted)
