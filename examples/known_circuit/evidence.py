"""What is measured of a model whose circuit is known: ``heads.tsv``, a row per head, and ``facts.json``.

All of it is measured on the topics and judgments of ``mechir:lab``, none of which the training saw; it did see the
passages. Effects are those of exact patching when a query term is appended to a document (TFC1), and ablations are done
by hooks on the Hugging Face model, apart from this package's own engine. Intervals are 95% intervals of a bootstrap of
queries, which are drawn with all their pairs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyterrier as pt
import torch
from circuit import HEAD_WIDTH, N_HEADS, N_LAYERS, Roles, columns, head
from ir_measures import iter_calc, nDCG
from pyterrier_pisa import PisaIndex
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from pyterrier_mechir import AggregateHeads, AttentionPatterns, CrossEncoder, PatchScorer, PerturbDocs
from pyterrier_mechir.perturb import TFC1
from pyterrier_mechir.retrieval import quiet

HEADS = [(layer, number) for layer in range(N_LAYERS) for number in range(N_HEADS)]
DIGITS = 4


class Lab(NamedTuple):
    """The lab collection as it is measured on.

    Args:
        qrels: its judgments.
        bm25: what BM25 retrieves, to a depth of 100.
        pool: ``qid, query, docno, text``: the 20 best of BM25 and whatever is judged, which the rankers put in order.
        pairs: the 10 best of BM25, with a query term appended.
    """

    qrels: pd.DataFrame
    bm25: pd.DataFrame
    pool: pd.DataFrame
    pairs: pd.DataFrame


def lab() -> Lab:
    dataset = pt.get_dataset("mechir:lab")
    topics, qrels = dataset.get_topics(), dataset.get_qrels()
    with TemporaryDirectory() as directory, quiet():
        index = PisaIndex(f"{directory}/index", text_field="text").index(dataset.get_corpus_iter())
        retrieved = (index.bm25(num_results=100) >> dataset.text_loader("text"))(topics)
    judged = dataset.text_loader("text")(qrels[["qid", "docno"]].merge(topics, on="qid"))
    pool = pd.concat([retrieved[retrieved["rank"] < 20], judged])[["qid", "query", "docno", "text"]]
    pool = pool.drop_duplicates(["qid", "docno"], ignore_index=True)
    pairs = PerturbDocs(TFC1())(retrieved[retrieved["rank"] < 10].reset_index(drop=True))
    return Lab(qrels, retrieved, pool, pairs[pairs["text_perturbed"].notna()].reset_index(drop=True))


class Ablated:
    """A checkpoint as transformers has it, with the means of heads in place of their outputs.

    Args:
        directory: the checkpoint.
        pool: texts over whose tokens the means are taken.
    """

    def __init__(self, directory: Path, pool: pd.DataFrame):
        self._tokenizer = AutoTokenizer.from_pretrained(directory)
        self._model = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32).eval()
        self._heads: Sequence[tuple[int, int]] = ()
        self._means = torch.zeros(N_LAYERS, N_HEADS * HEAD_WIDTH)
        self._mask: Tensor | None = None
        for number, layer in enumerate(self._model.bert.encoder.layer):
            layer.attention.output.dense.register_forward_pre_hook(
                lambda _, args, number=number: (self._changed(number, args[0]),)
            )
        self._sums, self._count, self._sums_up = torch.zeros_like(self._means), 0, True
        self.scores(pool["query"], pool["text"])
        self._means, self._sums_up = self._sums / self._count, False

    def _changed(self, layer: int, z: Tensor) -> Tensor:
        if self._sums_up and self._mask is not None:
            self._sums[layer] += (z * self._mask[..., None]).sum(dim=(0, 1))
        chosen = [number for of_layer, number in self._heads if of_layer == layer]
        z = z.clone() if chosen else z
        for number in chosen:
            z[..., columns(number)] = self._means[layer, columns(number)]
        return z

    @torch.no_grad()
    def scores(self, queries: pd.Series, texts: pd.Series, heads: Sequence[tuple[int, int]] = ()) -> np.ndarray:
        """The scores of pairs of query and text, with some heads ablated."""
        self._heads = heads
        order = np.argsort(texts.str.len().to_numpy(), kind="stable")
        scores = np.empty(len(order))
        for batch in np.array_split(order, max(1, len(order) // 32)):
            sides = queries.iloc[batch].tolist(), texts.iloc[batch].tolist()
            inputs = self._tokenizer(*sides, padding=True, truncation=True, return_tensors="pt")
            self._mask = inputs["attention_mask"]
            self._count += int(self._mask.sum())
            scores[batch] = self._model(**inputs).logits[:, 0].numpy()
        return scores


def interval(above: pd.Series, below: pd.Series | None = None, n_boot: int = 1000) -> tuple[float, float, float]:
    """Sum over sum (or a mean), and its interval by a bootstrap of queries; the series are indexed by query."""
    below = below if below is not None else pd.Series(1.0, above.index)
    tops, bottoms = (side.groupby(level=0).sum().to_numpy() for side in (above, below))
    drawn = np.random.default_rng(0).multinomial(len(tops), np.full(len(tops), 1 / len(tops)), n_boot)
    low, high = np.quantile((drawn @ tops) / (drawn @ bottoms), [0.025, 0.975])
    return tops.sum() / bottoms.sum(), low, high


def ndcg(of: Lab, scores: np.ndarray) -> pd.Series:
    """nDCG@10 of each query, for scores of the pool."""
    run = of.pool[["qid", "docno"]].assign(score=scores)
    return ndcg_of_run(of, run)


def ndcg_of_run(of: Lab, run: pd.DataFrame) -> pd.Series:
    names = {"qid": "query_id", "docno": "doc_id", "label": "relevance"}
    qrels, run = (frame.rename(columns=names) for frame in (of.qrels, run))
    values = iter_calc([nDCG @ 10], qrels, run[["query_id", "doc_id", "score"]])
    return pd.Series({value.query_id: value.value for value in values}).sort_index()


def attention_to_matches(ranker: CrossEncoder, pairs: pd.DataFrame, direction: str) -> np.ndarray:
    """The share of attention that goes to the same term on the other side, ``[pair, layer, head]``.

    For the query direction, from the query term that was appended to the document to its occurrences there; for the
    document direction, from the occurrence that was appended to the query term.
    """
    frame = AttentionPatterns(ranker)(pairs.assign(order=range(len(pairs)))).sort_values("order")
    attention, classes = np.stack(list(frame["attention"])), frame.attrs["mechir"]["classes"]
    start, ends = ("Q+", ["EDIT", "D+"]) if direction == "query" else ("EDIT", ["Q+"])
    there = attention[..., classes.index(start), :]
    return there[..., [classes.index(end) for end in ends]].sum(axis=-1)


def first(effects: pd.DataFrame, names: set[str]) -> float:
    """The share of queries whose greatest effects are exactly those of some heads."""
    best = effects.sort_values("rank").groupby("qid").head(len(names)).groupby("qid")["docno"]
    return float(best.agg(lambda found: set(found) == names).mean())


def write_evidence(directory: Path) -> None:
    """Measure a trained checkpoint and write ``heads.tsv`` beside it; what is of no one head goes to ``facts.json``."""
    facts = json.loads((directory / "facts.json").read_text(encoding="utf-8"))
    facts = {name: facts[name] for name in ("direction", "matching", "gathering", "decoy", "seed", "steps", "seconds")}
    gathering = tuple(map(head, facts["gathering"].split(",")))
    roles = Roles(facts["direction"], head(facts["matching"]), gathering, head(facts["decoy"]))
    of, ranker = lab(), CrossEncoder(directory)
    rows, measured = measure(of, ranker, Ablated(directory, of.pool), roles)
    rows.round(DIGITS).to_csv(directory / "heads.tsv", sep="\t", index=False, lineterminator="\n")
    facts |= {name: round(value, DIGITS) for name, value in measured.items()}
    (directory / "facts.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(rows.round(3).to_string(), json.dumps(facts, indent=1), sep="\n")


def measure(of: Lab, ranker: CrossEncoder, model: Ablated, roles: Roles) -> tuple[pd.DataFrame, dict[str, Any]]:
    """A row per head, and figures of the model as a whole."""
    names = [f"L{layer}H{number}" for layer, number in HEADS]
    circuit = {name for name, one in zip(names, HEADS, strict=True) if one not in roles.useless()}
    matching = {names[HEADS.index(roles.matching)]}
    facts: dict[str, Any] = {"n_queries": of.pairs["qid"].nunique(), "n_pairs": len(of.pairs)}
    table = pd.DataFrame({"qid": "all", "docno": names, "component": "head"})
    table["layer"], table["head"] = zip(*HEADS, strict=True)
    table["role"] = [roles.of(one) for one in HEADS]
    labels = {"matching": 2, "gathering": 2 if len(roles.gathering) == 1 else 1, "decoy": 0, "inert": 0}
    table["label"] = table["role"].map(labels)
    table["score"] = np.nan
    for direction in ("denoise", "noise"):
        patched = PatchScorer(ranker, direction=direction)(of.pairs)
        pooled = AggregateHeads(by=None)(patched).set_index("docno").loc[names]
        for column, source in (("", "score"), ("_low", "ci_low"), ("_high", "ci_high")):
            table[direction + column] = pooled[source].to_numpy()
        of_queries = AggregateHeads(n_boot=0)(patched)
        facts[f"circuit_on_top_{direction}"] = first(of_queries, circuit)
        facts[f"matching_first_{direction}"] = first(of_queries, matching)
    table["score"] = table["denoise"]

    def both(heads: Sequence[tuple[int, int]]) -> tuple[pd.Series, pd.Series]:
        """The gain of each pair, indexed by query, and the nDCG of each query, without some heads."""
        sides = [model.scores(of.pairs["query"], of.pairs[side], heads) for side in ("text_perturbed", "text")]
        return (
            pd.Series(sides[0] - sides[1], of.pairs["qid"].to_numpy()),
            ndcg(of, model.scores(of.pool["query"], of.pool["text"], heads)),
        )

    gain, quality = both([])
    attention = attention_to_matches(ranker, of.pairs, roles.direction)
    for row, one in enumerate(HEADS):
        left, without = both([one])
        looks = pd.Series(attention[:, one[0], one[1]], of.pairs["qid"].to_numpy())
        table.loc[row, ["gain_left", "gain_left_low", "gain_left_high"]] = interval(left, gain)
        table.loc[row, "ndcg_ablated"] = without.mean()
        table.loc[row, ["ndcg_change", "ndcg_change_low", "ndcg_change_high"]] = interval(without - quality)
        table.loc[row, ["attention", "attention_low", "attention_high"]] = interval(looks)
    left, without = both(roles.useless())
    facts |= dict(zip(("gain_left", "gain_left_low", "gain_left_high"), interval(left, gain), strict=True))
    rng = np.random.default_rng(0)
    return table, facts | {
        "gain": gain.mean(),
        "ndcg": quality.mean(),
        "ndcg_bm25": ndcg_of_run(of, of.bm25).mean(),
        "ndcg_random": np.mean([ndcg(of, rng.random(len(of.pool))).mean() for _ in range(20)]),
        "ndcg_by_length": ndcg(of, of.pool["text"].str.split().str.len().to_numpy()).mean(),
        "ndcg_without_matching": table["ndcg_ablated"].iloc[HEADS.index(roles.matching)],
        "ndcg_without_useless": without.mean(),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    torch.set_num_threads(1)
    write_evidence(parser.parse_args().directory)
