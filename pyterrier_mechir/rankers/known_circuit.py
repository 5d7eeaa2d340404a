"""Rankers that come with the package and whose causal circuit is known, to try methods on."""

from __future__ import annotations

import json
from importlib.resources import as_file, files
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from pyterrier_mechir._options import one_of
from pyterrier_mechir.rankers.cross_encoder import CrossEncoder

DIRECTIONS = ("query", "document")


class KnownCircuit(NamedTuple):
    """A ranker, and what each of its heads is for; see :func:`known_circuit`.

    Args:
        ranker: the cross-encoder.
        heads: a row per head.
    """

    ranker: CrossEncoder
    heads: pd.DataFrame


def known_circuit(direction: str = "query") -> KnownCircuit:
    r"""A small trained cross-encoder whose causal heads are known by construction, and the evidence for each head.

    In the direction ``query``, a *matching* head lets query words find themselves in the document and marks them; in
    the direction ``document`` it is the document's words that find themselves in the query. *Gathering* heads of the
    last layer bring the marks to [CLS]: two in the direction ``query``, each about half of them, and one in the
    direction ``document``. A *decoy* attends exactly as the matching head does, and nothing reads what it writes; the
    other heads are *inert*: they attend otherwise, to no effect. docs/methods/known_circuit.md tells how the circuit
    was built and how well methods find it; ``examples/known_circuit/train.py`` trains it, with the roles in any heads.

    A BERT of 3 layers of 4 heads, 96 wide, 6,000 words, 1.8 MB in half precision. Trained for 2,000 steps, four minutes
    of one core, on synthetic queries of the passages of ``mechir:lab``, with BM25 as the teacher. The figures below are
    of all 44 topics of that collection, none of which the training saw (it did see the passages). Effects are those of
    exact patching when a query term is appended to the ten best documents (TFC1, 438 pairs); intervals are 95%
    intervals of a bootstrap of queries.

    ============================================  ======================  ======================
    \                                             ``query``               ``document``
    ============================================  ======================  ======================
    nDCG@10 (BM25 .588, random order .405)        .606                    .501
    change without the matching head              -.193 (-.256 to -.129)  -.012 (-.069 to .053)
    matching head's effect, denoise               .997 (.997 to .998)     .848 (.831 to .866)
    matching head's effect, noise                 .998 (.998 to .999)     .986 (.977 to .993)
    gathering heads' effects, denoise             .500 and .502           1.000
    circuit has the greatest effects              in 100% of queries      in 100% of queries
    largest effect of the decoy and inert heads   .005                    .007
    score change left without the matching head   .001 (-.000 to .001)    .001 (.000 to .002)
    the same without the decoy and inert heads    .989 (.983 to .996)     .996 (.990 to 1.002)
    attention to the same word, matching head     .784                    .999
    the same, decoy                               .784                    .999
    ============================================  ======================  ======================

    In the direction ``document`` the ranker is worse than BM25, probably since a document's words do not see how often
    a term has been found already, and what is left of its scores without the matching head (a twentieth of their
    spread) still ranks by length, which alone has an nDCG@10 of .524 on this collection: there the circuit is shown by
    the score changes, not by the ranking.

    Args:
        direction: ``"query"`` or ``"document"``: which side's words look for themselves on the other.

    Returns:
        ``ranker``, a :class:`~pyterrier_mechir.CrossEncoder`, and ``heads``, a row per head: ``qid`` (``"all"``),
        ``docno`` (``L1H2``), ``component`` (``head``), ``layer``, ``head``, ``role`` (``matching``, ``gathering``,
        ``decoy``, ``inert``), ``label`` (2 where all of the effect passes through the head, 1 for one of two gathering
        heads, else 0), so that it stands as qrels beside ``AggregateHeads(by=None)``; ``score`` (that of ``denoise``),
        for :func:`~pyterrier_mechir.head_agreement`; and the evidence, all but ``ndcg_ablated`` with its interval
        (``denoise_low``, ``denoise_high`` and so on):

        - ``denoise``, ``noise``: the effect of patching the head, as a share of the score change;
        - ``gain_left``: the share of the score change that is left when the head is ablated, its mean over all tokens
          in its place;
        - ``ndcg_ablated``, ``ndcg_change``: nDCG@10 without the head, and how far that is from the whole model's;
        - ``attention``: how much of its attention the term gives to the same term on the other side.

        ``heads.attrs["facts"]`` has what is of no one head: ``steps``, ``seconds`` (of one core), ``seed``, the places
        of the roles, ``ndcg``, ``ndcg_bm25``, ``ndcg_random``, ``ndcg_by_length``, ``ndcg_without_matching``,
        ``ndcg_without_useless``, ``gain`` (the mean score change), ``gain_left`` (its share without all inert heads and
        the decoy), and on which shares of the queries the circuit (``circuit_on_top_denoise``, ``_noise``) and the
        matching head (``matching_first_denoise``, ``_noise``) have the greatest effects.

    Raises:
        ValueError: another direction.
    """
    one_of("direction", direction, DIRECTIONS)
    with as_file(files("pyterrier_mechir.collections") / "known" / direction) as directory:
        return read_circuit(directory)


def read_circuit(directory: str | Path) -> KnownCircuit:
    """What ``examples/known_circuit/train.py`` wrote: another seed, or roles in other heads.

    Raises:
        ValueError: it is no checkpoint, or no evidence lies beside it.
    """
    directory = Path(directory)
    missing = [name for name in ("heads.tsv", "facts.json") if not (directory / name).is_file()]
    if missing:
        raise ValueError(
            f"{directory} has no {missing[0]}; examples/known_circuit/train.py writes it, and evidence.py by itself."
        )
    ranker = CrossEncoder(directory)
    heads = pd.read_csv(directory / "heads.tsv", sep="\t", dtype=dict.fromkeys(["qid", "docno", "role"], "str"))
    heads.attrs["facts"] = json.loads((directory / "facts.json").read_text(encoding="utf-8"))
    ranker.name = f"known-circuit-{heads.attrs['facts']['direction']}"
    return KnownCircuit(ranker, heads)
