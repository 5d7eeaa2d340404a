"""Rankings of made-up collections, with judgments and the scores that each ablated head leaves."""

from __future__ import annotations

import numpy as np
import pandas as pd

BAD = (0, 2)
"""The component that is planted: without it, rankings are as without the noise that it adds."""


def collection(n_queries=30, n_docs=12, shape=(2, 4), seed=0, noise=0.05, planted=0.0, ties=False):
    """Scores with each head ablated, and judgments of most of the documents and of some that are not retrieved."""
    rng = np.random.default_rng(seed)
    rows, judged = [], []
    for q in range(n_queries):
        grades = (rng.random(n_docs) < 0.3) * rng.integers(1, 4, n_docs)
        clean = grades + rng.normal(0, 0.7, n_docs)
        harm = planted * rng.normal(size=n_docs)
        base = clean + harm
        ablated = base[:, None, None] + noise * rng.normal(size=(n_docs, *shape))
        ablated[(slice(None), *BAD)] -= harm
        if ties:
            base, ablated = np.round(base), np.round(ablated)
        for d in range(n_docs):
            rows.append((f"q{q}", f"d{(7 * d) % n_docs}-{q}", float(base[d]), ablated[d].astype(np.float32)))
            if d % 5:
                judged.append((f"q{q}", f"d{(7 * d) % n_docs}-{q}", int(grades[d])))
        judged.append((f"q{q}", f"elsewhere-{q}", 2))
    frame = pd.DataFrame(rows, columns=["qid", "docno", "score", "ablated_scores"])
    return frame, pd.DataFrame(judged, columns=["qid", "docno", "label"])


def told(out: pd.DataFrame) -> dict:
    """What a table of ranking effects says beside its rows."""
    return out.attrs["mechir"]["ranking_effects"]


def of_measure(out: pd.DataFrame, measure) -> dict:
    """What a table of ranking effects says of all components by a measure."""
    return next(row for row in told(out)["measures"] if row["measure"] == str(measure))


def by_name(out: pd.DataFrame) -> pd.DataFrame:
    return out.set_index("docno")
