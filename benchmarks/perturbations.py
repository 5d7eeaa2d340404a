"""Times every perturbation over 10,000 rows of 80 words, and document frequencies over 100,000 documents.

    python benchmarks/perturbations.py [--rows 10000] [--words 80] [--documents 100000]

Perturbations that look up similar words get a mapping, so that what is timed is their work on texts.
"""

from __future__ import annotations

import argparse
import random
import time

import pandas as pd

from pyterrier_mechir import PerturbDocs
from pyterrier_mechir.perturb import TFC1, Idf, Typos
from pyterrier_mechir.perturb.catalogue import CATALOGUE
from pyterrier_mechir.text.words import STOPWORDS


def collection(n: int, words: int, seed: int = 0) -> list[str]:
    """Texts of Zipf-distributed words with function words, capitals, numbers and sentences."""
    rng = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = ["".join(rng.choices(letters, k=rng.randint(3, 9))) for _ in range(20_000)]
    weights = [1 / rank for rank in range(1, len(vocabulary) + 1)]
    function_words = sorted(STOPWORDS)
    texts = []
    for _ in range(n):
        drawn = rng.choices(vocabulary, weights, k=words)
        for place in range(0, words, 3):
            drawn[place] = rng.choice(function_words)
        for place in range(5, words, 20):
            drawn[place] = drawn[place].title()
        drawn[words // 2] = str(rng.randint(1900, 2030))
        for place in range(15, words, 16):
            drawn[place] += "."
        texts.append(" ".join(drawn))
    return texts


def rows(texts: list[str], seed: int = 0) -> pd.DataFrame:
    """Results whose queries are of words of their documents, ten documents a query."""
    rng = random.Random(seed)
    queries = []
    for begin in range(0, len(texts), 10):
        content = [word.strip(".").lower() for word in texts[begin].split() if word.lower() not in STOPWORDS]
        repeated = sorted({word for word in content if content.count(word) > 1}) or content
        queries.append(" ".join([*rng.sample(content, 3), rng.choice(repeated), f'"{" ".join(content[:2])}"']))
    frame = pd.DataFrame({"docno": [f"d{i}" for i in range(len(texts))], "text": texts})
    return frame.assign(
        qid=[str(i // 10) for i in range(len(texts))], query=[queries[i // 10] for i in range(len(texts))]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--words", type=int, default=80)
    parser.add_argument("--documents", type=int, default=100_000)
    args = parser.parse_args()

    texts = collection(args.documents, args.words)
    begin = time.perf_counter()
    idf = Idf.of(texts)
    print(f"document frequencies of {args.documents:,} documents: {time.perf_counter() - begin:.1f} s")
    frame = rows(texts[: args.rows])
    terms = sorted({word.lower() for query in frame["query"].unique() for word in query.replace('"', "").split()})
    similar = {term: [f"{term[::-1]}x", f"{term[::-1]}y"] for term in terms}
    print(f"{'perturbation':45} seconds  rows that it applies to, of {args.rows:,}")
    made = [entry.perturbation for entry in CATALOGUE]
    settings = {"idf": idf, "similar": similar}
    made = [p.with_settings(**{k: v for k, v in settings.items() if getattr(p, k, None) is not None}) for p in made]
    stages = [PerturbDocs(p) for p in [*made, TFC1(position="start") | Typos()]]
    stages.append(PerturbDocs(TFC1(), control="random_term", idf=idf))
    for stage in stages:
        begin = time.perf_counter()
        out = stage(frame)
        seconds = time.perf_counter() - begin
        label = repr(stage.perturbation) + (f", control={stage.control!r}" if stage.control else "")
        print(f"{label[:45]:45} {seconds:7.2f}  {out['text_perturbed'].notna().sum():,}")


if __name__ == "__main__":
    main()
