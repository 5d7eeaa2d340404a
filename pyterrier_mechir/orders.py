"""Why one document stands above another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pyterrier_mechir._options import one_of
from pyterrier_mechir.checks import check_count
from pyterrier_mechir.models.modes import as_alone
from pyterrier_mechir.observe.words.absence import Absence, Absent
from pyterrier_mechir.observe.words.explained import Asked, Explained
from pyterrier_mechir.observe.words.methods import METHODS, Rows, check_asked, default_absence, explain
from pyterrier_mechir.observe.words.turning import Turning, turning
from pyterrier_mechir.rankers.unwrap import document_ranker
from pyterrier_mechir.results.frames import strongest_first

if TYPE_CHECKING:
    from pyterrier_mechir.rankers.base import Ranker

_MOST_TOLD = 5


@dataclass(frozen=True)
class OrderExplanation:
    """Why one document stands above another, told by the words of both and of the query.

    Printed, it says the margin, the words that carry it, and those whose removal turns the order round; a notebook
    shows both documents side by side, coloured by what each word does to the margin.

    Args:
        ranker: the ranker.
        query: the query.
        texts: the document above and the one below.
        scores: their scores.
        above: a row per word of the document above, with ``unit``, ``begin``, ``end`` (in characters of the text) and
            ``score``: what it adds to the margin, in score units. NaN for what is beyond the length that is read.
        below: the same of the document below: a word that raises its score has a negative share of the margin.
        of_query: the same of the query.
        turning: a row per word whose removal, of all of them, turns the order round, with ``side`` (``above`` or
            ``below``), ``unit``, ``begin`` and ``end``, in the order in which they were chosen; None where no set
            within the limit was found.
        without: both texts without these words, where they are deleted; None otherwise.
        scores_without: both scores without them; None where there is no such set.
        asked: the method, unit and absence.
    """

    ranker: Ranker
    query: str
    texts: tuple[str, str]
    scores: tuple[float, float]
    above: pd.DataFrame
    below: pd.DataFrame
    of_query: pd.DataFrame
    turning: pd.DataFrame | None
    without: tuple[str, str] | None
    scores_without: tuple[float, float] | None
    asked: Mapping[str, Any] = field(repr=False)

    @property
    def margin(self) -> float:
        """The score of the document above less that of the one below."""
        return self.scores[0] - self.scores[1]

    @property
    def turned(self) -> str:
        """What turns the order round, as a sentence."""
        if self.turning is None or self.scores_without is None:
            most, unit = self.asked["limit"], self.asked["unit"]
            return f"No set of at most {most} of the {unit}s that were tried turns the order round."
        parts = [
            f"{', '.join(map(repr, rows['unit']))} {'above' if side == 'above' else 'below'}"
            for side, rows in self.turning.groupby("side", sort=False)
        ]
        left = self.scores_without[0] - self.scores_without[1]
        return f"Without {' and '.join(parts)}, the margin is {left:+.3f}: the order is turned round."

    def __repr__(self) -> str:
        lines = [f"{self.ranker!r}: {self.scores[0]:.3f} above {self.scores[1]:.3f}, a margin of {self.margin:+.3f}."]
        for name, rows in (("above", self.above), ("below", self.below), ("query", self.of_query)):
            shown = strongest_first(rows[rows["score"].notna()]).head(_MOST_TOLD)
            told = (f"{unit!r} {score:+.3f}" for unit, score in zip(shown["unit"], shown["score"], strict=True))
            lines.append(f"  {name}: {', '.join(told) or 'no words'}")
        return "\n".join([*lines, f"  {self.turned}"])

    def _repr_html_(self) -> str:
        from pyterrier_mechir.plots.word_markup import Passage, side_by_side

        parts = (
            ("query", self.query, self.of_query),
            *zip(("above", "below"), self.texts, (self.above, self.below), strict=True),
        )
        scores = ("", f": {self.scores[0]:.3f}", f": {self.scores[1]:.3f}")
        passages = [
            Passage(f"{name}{score}", text, rows[["begin", "end"]].to_numpy(), rows["score"].to_numpy())
            for (name, text, rows), score in zip(parts, scores, strict=True)
        ]
        said = f"{self.ranker!r}: a margin of {self.margin:+.3f}, told by {self.asked['method']}. {self.turned}"
        return f"<p>{escape(said)}</p>{side_by_side(passages, what='margin')}"


@as_alone()
def explain_order(
    ranker: Ranker,
    query: str | None,
    above: str | Mapping[str, Any],
    below: str | Mapping[str, Any],
    *,
    method: str = "occlusion",
    unit: str = "word",
    absence: Absence | None = None,
    limit: int = 10,
    candidates: int = 20,
    seed: int = 0,
    text_field: str = "text",
    batch_size: int | None = None,
) -> OrderExplanation:
    """Explain why a ranker puts one document above another.

    What a word adds to the margin is what it adds to the score of its document, with the other sign for a word of the
    document below; a word of the query adds the difference of what it adds to both. Then the smallest set of words is
    looked for whose removal turns the order round: greedily, with all that was chosen left out together and scored
    anew, and those put back that are not needed. There may be smaller sets that a greedy search does not find.

    Args:
        ranker: the ranker.
        query: the query; None takes that of the rows.
        above: the text of the document with the higher score, or its row of a frame, with ``text``.
        below: that of the other.
        method: as in :class:`~pyterrier_mechir.ExplainScore`, of the words' shares.
        unit: ``word``, ``token`` or ``sentence``.
        absence: what stands in the place of a word that is left out, as there.
        limit: most words of the set; 0 looks for none.
        candidates: how many words are tried, those first whose removal alone moves the margin most.
        seed: of what is drawn.
        text_field: the entry of rows that has the text.
        batch_size: sequences in a forward pass; None batches by length.

    Raises:
        TypeError: something that is no text and no row.
        ValueError: equal texts, rows of different queries, a document above that does not score higher, or an option
            that the method or the ranker cannot do.
    """
    plain = document_ranker(ranker)
    query, texts = _given(query, above, below, text_field)
    check_count("limit", limit, 0)
    check_count("candidates", candidates)
    one_of("method", method, METHODS)
    found = default_absence(method, plain) if absence is None else absence
    asked = Asked(method, unit, found, seed=seed, batch_size=batch_size)
    for side in ("document", "query"):
        check_asked(asked, plain, side)
    higher, lower = (float(score) for score in plain.score([query, query], texts, batch_size=batch_size))
    if not higher > lower:
        raise ValueError(
            f"the document above scores {higher:.4f}, which is no more than the {lower:.4f} of the one below; exchange "
            "them."
        )
    of_texts = explain(plain, Rows([query] * 2, texts), asked, "document")
    of_query = explain(plain, Rows(texts, [query] * 2), asked, "query")
    turned = None
    if limit:
        out = "delete" if absence is None else absence
        turned = turning(
            plain.facing("document"),
            [one.reading for one in of_texts],
            [one.scores[one.reading.read].astype(np.float64) for one in of_texts],
            Absent(plain.facing("document"), out, seed),
            limit=limit,
            n_candidates=candidates,
            batch_size=batch_size,
        )
    is_deleted = turned is not None and absence in (None, "delete")
    return OrderExplanation(
        plain,
        query,
        (texts[0], texts[1]),
        (higher, lower),
        _rows(of_texts[0], of_texts[0].scores),
        _rows(of_texts[1], -of_texts[1].scores),
        _rows(of_query[0], of_query[0].scores - of_query[1].scores),
        _turning_rows(of_texts, turned),
        _without(of_texts, turned) if turned is not None and is_deleted else None,
        None if turned is None else turned.scores,
        {"method": method, "unit": unit, "absence": found, "limit": limit},
    )


def _given(query: str | None, above: Any, below: Any, text_field: str) -> tuple[str, list[str]]:
    """The query and both texts."""
    texts, queries, qids = [], [query], []
    for name, one in (("above", above), ("below", below)):
        if isinstance(one, str):
            texts.append(one)
            continue
        if not isinstance(one, (Mapping, pd.Series)) or not isinstance(one.get(text_field), str):
            raise TypeError(f"{name} is {one!r}; give a text, or a row of a frame with {text_field!r}.")
        texts.append(one[text_field])
        queries.append(one.get("query"))
        qids.append(one.get("qid"))
    asked = {one for one in queries if one is not None}
    if len(asked) > 1 or len({qid for qid in qids if qid is not None}) > 1:
        raise ValueError(
            f"the documents are of different queries ({', '.join(map(repr, sorted(asked)))}); an order is that of one "
            "query."
        )
    if not asked:
        raise ValueError("there is no query; give query=, or rows with one.")
    if texts[0] == texts[1]:
        raise ValueError("the two texts are equal, so that nothing puts one above the other.")
    return asked.pop(), texts


def _rows(explained: Explained, scores: np.ndarray) -> pd.DataFrame:
    begins, ends = explained.reading.spans.T
    return pd.DataFrame({"unit": explained.reading.names, "begin": begins, "end": ends, "score": scores})


def _turning_rows(of_texts: list[Explained], turned: Turning | None) -> pd.DataFrame | None:
    if turned is None:
        return None
    rows = [
        (("above", "below")[text], of_texts[text].reading.names[unit], *of_texts[text].reading.spans[unit].tolist())
        for text, unit in turned.units
    ]
    return pd.DataFrame(rows, columns=["side", "unit", "begin", "end"])


def _without(of_texts: list[Explained], turned: Turning) -> tuple[str, str]:
    """Both texts as far as they are read, without the words that turn the order round."""
    above, below = (one.reading.visible.kept(kept.tolist()) for one, kept in zip(of_texts, turned.kept, strict=True))
    return above, below
