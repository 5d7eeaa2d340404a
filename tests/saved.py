"""Edited rankers that are saved, and what reading them back has to give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from small_models import QUERIES, TEXTS
from tolerance import assert_near

from pyterrier_mechir import Ablate, Add, Scale, head_means, load_ranker

PAIRS = list(zip(QUERIES, TEXTS, strict=True))
"""Queries and texts."""


def edited(ranker: Any, side: str = "both") -> Any:
    """Factors, a mean, a vector and an ablated MLP, in an order that matters."""
    frame = pd.DataFrame(PAIRS, columns=["query", "text"])
    shift = np.linspace(-0.5, 0.5, 32, dtype=np.float32)
    first = [Scale("L0H1", 0.3), Ablate("L1H0", by="mean"), Add("L0.attn_out", shift)]
    then = [Scale("L0.attn_out", 0.8), Ablate("L1.mlp_out"), Scale("L1H1.v", 1.5)]
    return ranker.edited(first, side, reference=head_means(ranker, frame)).edited(then, side)


def assert_read_back(ranker: Any, directory: Path) -> Any:
    """The directory gives a ranker of the same class and settings that scores alike, and that can be saved again."""
    wanted = ranker.score(QUERIES, TEXTS)
    read = load_ranker(directory, verbose=False)
    assert type(read) is type(ranker)
    assert_near(read.score(QUERIES, TEXTS), wanted)
    settings = read.about().keys() - {"name", "edits", "baked_edits", "projection"}
    assert {name: read.about()[name] for name in settings} == {name: ranker.about()[name] for name in settings}
    again = read.save_pretrained(directory.with_name(f"{directory.name} again"))
    assert (
        read.about(fingerprint=True)["weights"] == load_ranker(again, verbose=False).about(fingerprint=True)["weights"]
    )
    return read
