"""Published pairs and arrays, read from a folder of the user's, and what they say by themselves, without a ranker."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pyterrier_mechir._options import one_of
from pyterrier_mechir.models.sites import Site
from pyterrier_mechir.results.frames import check_columns
from pyterrier_mechir.stages.base.rows import PairRows
from pyterrier_mechir.text.encoding import EDIT, TOKEN_CLASSES

if TYPE_CHECKING:
    from pyterrier_mechir.rankers.base import Ranker

GRADES = (0, 1, 2, 3)
SMALL = 0.1
"""Score changes below this are called small."""

ZERO = 1e-5
"""Published effects below this are those of equal activations: rounding of scores near 100, over changes of some 4."""

BLOCK = ("resid_pre", "attn_out", "mlp_out")
"""What a published array of blocks has a part of, in this order."""

KINDS = {
    "bi": "sebastian-hofstaetter-distilbert-dot-tas_b-b256-msmarco_bi",
    "cross": "crystina-z-monoELECTRA_LCE_nneg31_cross",
}
"""How MechIR's files begin that are of TAS-B and of monoELECTRA."""


def _file(folder: str | Path, pattern: str) -> Path:
    """The one file of a folder, or of the folders in it, whose name fits.

    Raises:
        ValueError: there is none, or there are several.
    """
    files = sorted(Path(folder).rglob(pattern))
    if len(files) != 1:
        raise ValueError(f"{str(folder)!r} has {len(files)} files {pattern!r}; give the folder that holds the one.")
    return files[0]


def _table(file: Path, needed: list[str]) -> pd.DataFrame:
    frame = pd.read_csv(file, sep="\t", dtype={"qid": "str", "docno": "str"}, quoting=3, keep_default_na=False)
    check_columns(frame, needed)
    return frame


def tfc1(folder: str | Path) -> pd.DataFrame:
    """The diagnostic set of Chen et al. (SIGIR 2024): ``tfc1_tasb.tsv.gz``.

    Args:
        folder: that holds it, in itself or in a folder in it. The file has ``qid, query, docno, term, text`` and the
            scores ``tasb_base``, ``tasb_append`` and ``tasb_prepend`` of TAS-B, tab-separated.

    Returns:
        Its rows; scores that are missing are NaN.

    Raises:
        ValueError: there is no such file.
        pt.validate.InputValidationError: it lacks a column.
    """
    scores = [f"tasb_{one}" for one in ("base", "append", "prepend")]
    frame = _table(_file(folder, "tfc1_tasb.tsv*"), ["qid", "query", "docno", "term", "text", *scores])
    return frame.assign(**{one: pd.to_numeric(frame[one]) for one in scores})


def topk(folder: str | Path, kind: str, axiom: str) -> pd.DataFrame:
    """MechIR's pairs (ECIR 2025) of a ranker and an axiom: ``*_bi_TFC1_topk_4000.tsv.gz``.

    Args:
        folder: that holds them, in itself or in a folder in it. A file has ``qid, docno, score_delta, text,
            perturbed_text, query, relevance``, tab-separated.
        kind: ``bi`` (TAS-B) or ``cross`` (monoELECTRA).
        axiom: ``TFC1`` or ``TDC``.

    Returns:
        Its rows, with ``label`` (the relevance), ``text_perturbed`` and ``score_delta`` (of the texts without fillers).

    Raises:
        ValueError: there is no such file, or an unknown kind.
        pt.validate.InputValidationError: it lacks a column.
    """
    file = _file(folder, f"{KINDS[one_of('kind', kind, KINDS)]}_{axiom}_topk_*.tsv*")
    needed = ["qid", "docno", "score_delta", "text", "perturbed_text", "query", "relevance"]
    frame = _table(file, needed).rename(columns={"perturbed_text": "text_perturbed", "relevance": "label"})
    return frame.assign(score_delta=pd.to_numeric(frame["score_delta"]), label=frame["label"].astype("int64"))


def maps(folder: str | Path, kind: str, axiom: str) -> pd.DataFrame:
    """MechIR's head maps of a ranker and an axiom: ``*_patch_head_all.npy`` and ``*_patch_head_rel_0.npy`` to ``3``.

    Args:
        folder: that holds them, in itself or in a folder in it; each is ``[layer, head]``.
        kind: as in :func:`topk`.
        axiom: likewise.

    Returns:
        ``qid`` (``all``, ``0`` to ``3``), ``docno, component, layer, head, score``, as AggregateHeads gives them.

    Raises:
        ValueError: there are no such files, or one is no matrix.
    """
    parts = []
    for group in ("all", *map(str, GRADES)):
        name = group if group == "all" else f"rel_{group}"
        file = _file(folder, f"{KINDS[one_of('kind', kind, KINDS)]}_{axiom}_*_patch_head_{name}.npy")
        values = np.load(file, allow_pickle=False)
        if values.ndim != 2:
            raise ValueError(f"{file.name} is of shape {values.shape}; a head map is [layer, head].")
        layers, heads = (part.ravel() for part in np.indices(values.shape))
        names = [Site("head", int(layer), int(head)).name for layer, head in zip(layers, heads, strict=True)]
        columns = {"qid": group, "docno": names, "component": "head", "layer": layers, "head": heads}
        parts.append(pd.DataFrame({**columns, "score": values.ravel().astype(np.float64)}))
    return pd.concat(parts, ignore_index=True)


def blocks(folder: str | Path, ranker: Ranker) -> pd.DataFrame:
    """The block arrays of Chen et al. (SIGIR 2024), ``QID_DOCNO_block.npy``, binned into classes of tokens.

    An array, ``[component, layer, position]``, has TAS-B's effects for the pair of ``tfc1_tasb.tsv.gz`` to whose text
    the term is appended. It names no tokens: the pair is encoded and aligned as for patching, with filler ``a``, which
    says of what class each position is. Streams that enter the first layer are the same where nothing is edited, and so
    have no effect there, which is checked.

    Args:
        folder: that holds the arrays and the table, in itself or in folders in it.
        ranker: a bi-encoder with the tokenizer of TAS-B, that of bert-base-uncased; it is not run.

    Returns:
        ``docno`` (the site), ``component, layer, slot`` (the class), ``score`` (the mean over pairs of the mean effect
        of a pair's positions of the class) and ``n_pairs`` (that have such a position).

    Raises:
        ValueError: there are no arrays, one is of a pair that the table lacks, or of another shape or other edited
            positions than the pair has as the ranker encodes it.
        pt.validate.InputValidationError: the table lacks a column.
    """
    table = tfc1(folder).set_index(["qid", "docno"])
    files = sorted(Path(folder).rglob("*_block.npy"))
    if not files:
        raise ValueError(f"{str(folder)!r} has no files '*_block.npy'; give the folder that holds the arrays.")
    keys = [tuple(file.name.split("_")[:2]) for file in files]
    if lacking := [key for key in keys if key not in table.index]:
        raise ValueError(f"{files[keys.index(lacking[0])].name}: the table has no pair {lacking[0]}.")
    frame = table.loc[keys].reset_index()
    pairs = PairRows.of(frame.assign(text_perturbed=frame["text"] + " " + frame["term"]), "text")
    aligned = pairs.aligned(ranker, range(len(frame)))
    parts = []
    for row, file in enumerate(files):
        pair, values = aligned.pairs[aligned.places[row]], np.load(file, allow_pickle=False)
        length = 0 if pair is None else len(pair.classes)
        if pair is None or values.ndim != 3 or values.shape[::2] != (len(BLOCK), length):
            raise ValueError(
                f"{file.name} is of shape {values.shape}, for which {ranker!r} has {length} positions; an array is "
                f"[{len(BLOCK)}, layer, position], and the tokenizer must be that of bert-base-uncased."
            )
        if (np.abs(values[0, 0, pair.classes != EDIT]) > ZERO).any():
            raise ValueError(f"{file.name} has effects before the first layer where {ranker!r} sees no edit.")
        component, layer, position = (index.ravel() for index in np.indices(values.shape))
        of_file = {"component": component, "layer": layer, "slot": pair.classes[position], "score": values.ravel()}
        parts.append(pd.DataFrame(of_file).groupby(["component", "layer", "slot"], as_index=False)["score"].mean())
    by = ["component", "layer", "slot"]
    made = pd.concat(parts).groupby(by)["score"].agg(score="mean", n_pairs="size").reset_index()
    component = made["component"].map(dict(enumerate(BLOCK)))
    names = [Site(name, int(layer)).name for name, layer in zip(component, made["layer"], strict=True)]
    slots = made["slot"].map(dict(enumerate(TOKEN_CLASSES)))
    return made.assign(docno=names, component=component, slot=slots)[["docno", *by, "score", "n_pairs"]]


def changes(frame: pd.DataFrame, delta: Any, by: str | None = None) -> pd.DataFrame:
    """How far the scores of some pairs move.

    Args:
        frame: the pairs.
        delta: s_p - s_b of each; missing ones are left out.
        by: a column whose values are groups; None is one group, ``all``.

    Returns:
        ``group, n_pairs, n_queries, mean, sd, median, least, greatest, negative`` (the share below 0) and ``small``
        (the share below 0.1 in absolute value).
    """
    made = pd.DataFrame({"qid": frame["qid"].to_numpy(), "delta": np.asarray(delta, dtype=np.float64)})
    made["group"] = "all" if by is None else frame[by].astype(str).to_numpy()
    rows = []
    for group, of_group in made.dropna().groupby("group"):
        values = of_group["delta"]
        rows.append(
            {
                "group": group,
                "n_pairs": len(values),
                "n_queries": of_group["qid"].nunique(),
                "mean": values.mean(),
                "sd": values.std(),
                "median": values.median(),
                "least": values.min(),
                "greatest": values.max(),
                "negative": (values < 0).mean(),
                "small": (values.abs() < SMALL).mean(),
            }
        )
    return pd.DataFrame(rows)
