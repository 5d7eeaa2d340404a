"""Which words make a score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import pyterrier as pt

from pyterrier_mechir._options import one_of
from pyterrier_mechir.checks import check_count, check_number, warn
from pyterrier_mechir.observe.words.absence import Absence
from pyterrier_mechir.observe.words.explained import Asked
from pyterrier_mechir.observe.words.methods import check_asked, default_absence
from pyterrier_mechir.progress import shown
from pyterrier_mechir.rankers.base import Ranker
from pyterrier_mechir.results.frames import METADATA, as_cells
from pyterrier_mechir.stages.base.text_stage import TextStage
from pyterrier_mechir.stages.results_writer import Storing
from pyterrier_mechir.text.fillers import RandomFiller

if TYPE_CHECKING:
    from pyterrier_mechir.observe.words.explained import Explained

AGAINST = ("next",)
"""What a score can be explained against."""

POOR = 0.05
"""Sums of ``ig`` that miss what they should be by more than this share are warned of."""

_AT_ONCE = 256
"""Rows that are explained before the next are read."""


class ExplainScore(TextStage, Storing):
    """Re-ranks, and tells each score by the words of its document or of its query.

    Methods:

    - ``occlusion``: what the score loses without the word; exact by definition, one run for each word.
    - ``gradient``: gradient times input at the word embeddings; one run.
    - ``ig``: integrated gradients (Sundararajan, Taly and Yan, 2017), whose words add up to the score less that without
      any of them; ``sum_error`` says by how much they miss it.
    - ``lime``: a linear fit to texts with random words left out (LIRME: Verma and Ganguly, 2019), with standard errors.
      With ``against="next"``, what is fitted is whether the text still scores above the next document (EXS: Singh and
      Anand, 2019), so that a word carries a share of 1 and not of the score.
    - ``terms``: of SPLADE and ColBERT, whose scores are sums over tokens, what each word adds; exact.

    Expected input columns: ``qid, query, docno, text``. Adds ``score`` and ``rank`` (the ranker's own), and

    - ``units``: the words as they stand in the text, a list of str for each row, in the order of the text;
    - ``unit_spans``: where each begins and ends, in characters of the text, int64 ``[n, 2]``;
    - ``unit_scores``: what each carries, float32 ``[n]``, in score units: above 0 it pushes the score up. NaN for what
      is beyond the length that the ranker reads, for the only word of a text of which nothing would be left to read,
      and for what is told against a next document where there is none;
    - ``unit_rest``: what is given to no word: special tokens, marks, the other text; NaN where a method has no such
      thing;
    - ``score_empty``: the score without any of the words; NaN for ``gradient``;
    - ``sum_error``: by how much ``unit_scores``, ``unit_rest`` and ``score_empty`` together miss the score, where they
      should add up to it (``ig``, ``terms``); else NaN.

    ``lime`` adds ``unit_errors`` (float32 ``[n]``, standard errors) and ``fit_r2`` (R squared of samples that were not
    fitted); ``terms`` of SPLADE ``terms``, ``term_scores`` and ``term_units`` (what each term of the vocabulary adds,
    and the number of the word that raised it, -1 for none); ``interactions=True`` ``query_units`` and ``interactions``
    (float32 ``[query unit + 1, unit + 1]``, whose last row and column are of no unit), which for ``terms`` sum to the
    score and for ``ig`` to the score less ``score_empty`` and ``sum_error`` (Moeller, Nikolaev and Pado, 2023;
    ``interaction_terms`` has the four terms); ``against="next"`` ``against`` (the docno of the next document of the
    query, None for the last) and ``margin`` (the score less that of the next).

    A word is a run of letters, marks and digits; in scripts without spaces between words, such as Chinese or Thai, it
    is a letter. A text that is too long is explained as far as it is read, and score differences are then those of the
    part that is read.

    Args:
        ranker: a ranker, such as :class:`~pyterrier_mechir.CrossEncoder`.
        method: one of the above.
        unit: ``word``, ``token`` or ``sentence``.
        of: whose words: ``document`` or ``query``.
        against: ``next`` explains the margin over the next-ranked document. What a word of the document carries is the
            same (unless by ``lime``); what a word of the query carries is the difference between both documents.
        absence: what stands in the place of a word that is left out: ``delete`` (the rest is tokenised again),
            ``attention`` (hidden from all others), ``mask``, ``pad``, ``random`` (words as rare, the mean over draws),
            a :class:`~pyterrier_mechir.perturb.RandomFiller`, or a word that is one token. None takes ``delete``, and
            for ``ig``, which needs texts of one length, ``mask``, or ``random`` where a tokenizer has none.
            ``gradient`` and ``terms`` leave nothing out, and take none.
        all_occurrences: whether all occurrences of a word are left out together, for ``occlusion`` and ``lime``. Of a
            word that comes twice, one occurrence alone may seem worthless.
        steps: points of the path of ``ig``.
        samples: texts that ``lime`` draws; None draws ten for each word, and at least 200.
        kernel_width: of the weights of ``lime``, in hundredths of cosine distance; a great one weighs all alike.
        interactions: whether to tell what pairs of a query's and a document's words add: of SPLADE and ColBERT by
            ``terms``, of bi-encoders by ``ig``.
        seed: of what is drawn; a row's draws depend on nothing but it and the row's texts.
        text_field: column of the document text.
        batch_size: sequences in a forward pass; None batches by length.
        verbose: show a progress bar.

    Raises:
        TypeError: ``ranker`` is no ranker, or an absence that is none.
        ValueError: an unknown option, or a method that the ranker or the absence cannot do; the message says what can.
    """

    schematic: ClassVar = {"label": "ExplainScore"}

    added: ClassVar = (
        *("score", "rank", "units", "unit_spans", "unit_scores", "unit_rest", "score_empty", "sum_error"),
        *("unit_errors", "fit_r2", "terms", "term_scores", "term_units"),
        *("query_units", "interactions", "interaction_terms", "against", "margin"),
    )

    def __init__(
        self,
        ranker: Ranker,
        method: str = "occlusion",
        unit: str = "word",
        of: str = "document",
        against: str | None = None,
        *,
        absence: Absence | None = None,
        all_occurrences: bool = False,
        steps: int = 50,
        samples: int | None = None,
        kernel_width: float = 25.0,
        interactions: bool = False,
        seed: int = 0,
        text_field: str = "text",
        batch_size: int | None = None,
        verbose: bool = False,
    ):
        super().__init__(ranker, text_field=text_field, batch_size=batch_size, verbose=verbose)
        self.method, self.unit, self.of = method, unit, of
        self.against = against if against is None else one_of("against", against, AGAINST)
        self.absence = absence
        self.all_occurrences = all_occurrences
        self.steps = check_count("steps", steps)
        self.samples = samples if samples is None else check_count("samples", samples)
        self.kernel_width = check_number("kernel_width", kernel_width, above=0)
        self.interactions = interactions
        self.seed = seed
        check_asked(self._asked, self.ranker, of)
        if against is not None and method == "lime" and of == "query":
            raise ValueError(
                "against='next' with method='lime' asks whether a document without some of its words scores above the "
                "next, so it goes with of='document'; give another method for the words of the query."
            )

    @property
    def _asked(self) -> Asked:
        absence = default_absence(self.method, self.ranker) if self.absence is None else self.absence
        return Asked(
            self.method,
            self.unit,
            absence,
            self.all_occurrences,
            self.steps,
            self.samples,
            self.kernel_width,
            self.interactions,
            self.seed,
            self.batch_size,
        )

    @property
    def whole_frame(self) -> str:
        if self.against is None:
            return ""
        return (
            "against='next' compares each document with the next of its query, so it cannot be written in parts; leave "
            "it out"
        )

    def about(self, *, fingerprint: bool = False) -> dict[str, Any]:
        """What decides the results: ``ranker`` and ``scorer``, as those of :class:`~pyterrier_mechir.PatchScorer`."""
        asked = self._asked
        absence = repr(asked.absence) if isinstance(asked.absence, RandomFiller) else asked.absence
        draws = self.method == "lime" or absence == "random"
        scorer = {
            "stage": "ExplainScore",
            "method": self.method,
            "unit": self.unit,
            "of": self.of,
            "against": self.against,
            "absence": absence,
            "all_occurrences": self.all_occurrences,
            "interactions": self.interactions,
            "text_field": self.text_field,
            **({"steps": self.steps} if self.method == "ig" else {}),
            **({"samples": self.samples, "kernel_width": self.kernel_width} if self.method == "lime" else {}),
            **({"seed": self.seed} if draws else {}),
        }
        return {"ranker": self.ranker.about(fingerprint=fingerprint), "scorer": scorer}

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Score, rank and explain; what an earlier explanation added is left out.

        Raises:
            pt.validate.InputValidationError: a column is missing.
            ValueError: a query or text that is not a string, or a (qid, docno) that comes twice.

        Warns:
            UserWarning: sums of ``ig`` that miss what they should be by more than a twentieth; how many.
        """
        before = self.added[2:] if "unit_spans" in inp.columns else ()
        return super().transform(inp.drop(columns=list(before), errors="ignore"))

    def _scored(self, queries: list[str], texts: list[str]) -> dict[str, Any]:
        scores = self.ranker.score(queries, texts, batch_size=self.batch_size)
        return {"score": scores} | self._explained(queries, texts)

    def _added(self, inp: pd.DataFrame) -> dict[str, Any]:
        if self.against is None:
            return super()._added(inp)
        queries, texts = inp["query"].tolist(), inp[self.text_field].tolist()
        scores = self.ranker.score(queries, texts, batch_size=self.batch_size)
        after, known = _next(inp.assign(score=scores)), np.append(scores.astype(np.float64), np.nan)
        added = self._explained(queries, texts, known[after])
        return {"score": scores} | added | self._over_next(added, after, known, inp["docno"].tolist())

    def _metadata(self, inp: pd.DataFrame) -> dict[str, Any]:
        return {METADATA: inp.attrs.get(METADATA, {}) | self.about()}

    def _explained(self, queries: list[str], texts: list[str], thresholds: np.ndarray | None = None) -> dict[str, Any]:
        """The columns of explanations."""
        from pyterrier_mechir.observe.words.methods import Rows, columns_of, explain

        contexts, explained = (queries, texts) if self.of == "document" else (texts, queries)
        order = sorted(range(len(explained)), key=explained.__getitem__)  # equal texts are computed together, once
        found: dict[int, Explained] = {}
        with pt.tqdm(total=len(texts), desc=repr(self.ranker), unit="doc", disable=not shown(self.verbose)) as bar:
            for begin in range(0, len(order), _AT_ONCE):
                some = order[begin : begin + _AT_ONCE]
                beside, told = ([column[row] for row in some] for column in (contexts, explained))
                rows = Rows(beside, told, None if thresholds is None else thresholds[some].tolist())
                found |= zip(some, explain(self.ranker, rows, self._asked, self.of, bar.update), strict=True)
        made = [found[row] for row in range(len(order))]
        self._warn_of_sums(made)
        columns: dict[str, Any] = {
            "units": as_cells(one.reading.names for one in made),
            "unit_spans": as_cells(one.reading.spans for one in made),
            "unit_scores": as_cells(one.scores for one in made),
            "unit_rest": np.array([one.rest for one in made], dtype=np.float64),
            "score_empty": np.array([one.empty for one in made], dtype=np.float64),
            "sum_error": np.array([one.error for one in made], dtype=np.float64),
        }
        for name in columns_of(self._asked, self.ranker):
            values = [one.more[name] for one in made]
            columns[name] = np.array(values, dtype=np.float64) if name == "fit_r2" else as_cells(values)
        return columns

    def _warn_of_sums(self, made: Sequence[Explained]) -> None:
        if self.method != "ig":
            return
        poor = sum(abs(one.error) > POOR * abs(np.nansum(one.scores) + one.error) for one in made)
        if poor:
            warn(
                f"the words of {poor} of {len(made)} texts miss what they should add up to by more than {POOR:.0%} "
                f"(sum_error); give more steps than {self.steps}."
            )

    def _over_next(
        self, added: dict[str, Any], after: np.ndarray, scores: np.ndarray, docnos: list[str]
    ) -> dict[str, Any]:
        """The columns of a margin over the next document, with the explanations that change with it."""
        names = np.array([*docnos, None], dtype=object)
        made: dict[str, Any] = {"against": pd.Index(names[after], dtype=object), "margin": scores[:-1] - scores[after]}
        is_last = after == len(docnos)
        if self.method == "lime":
            for name in ("unit_scores", "unit_errors"):
                of_rows = zip(added[name], is_last, strict=True)
                made[name] = as_cells(np.full_like(one, np.nan) if last else one for one, last in of_rows)
            made["fit_r2"] = np.where(is_last, np.nan, added["fit_r2"])
        elif self.of == "query":
            carried = [*added["unit_scores"], np.float32(np.nan)]
            made["unit_scores"] = as_cells(carried[row] - carried[other] for row, other in enumerate(after))
            for name in ("unit_rest", "score_empty", "sum_error"):
                values = np.append(added[name], np.nan)
                made[name] = values[:-1] - values[after]
        return made

    def _key(self) -> tuple[Any, ...]:
        return (self.ranker, self.against, self._asked, self.of, self.text_field)


def _next(frame: pd.DataFrame) -> np.ndarray:
    """For each row, the place of the row that is ranked next for its query; the number of rows for the last of one."""
    ranked = pt.model.add_ranks(frame[["qid", "docno", "score"]].assign(place=np.arange(len(frame))))
    ordered = ranked.sort_values(["qid", "rank"], kind="stable")
    found = np.full(len(frame), len(frame))
    is_same = ordered["qid"].to_numpy()[1:] == ordered["qid"].to_numpy()[:-1]
    places = ordered["place"].to_numpy()
    found[places[:-1][is_same]] = places[1:][is_same]
    return found
