"""Memory and time of a long run: a million pairs, streamed.

``python benchmarks/memory.py`` makes frames of short documents one after the other, perturbs and patches them with a
tiny model of random weights (a layer of two heads, 8 wide), and writes the results to a temporary directory, by
``run_sweep``. The model costs little, so that what is measured is everything else: perturbing, aligning, hashing,
writing. After each power of ten it prints the peak memory of the process and the pairs per second; the target
is a million pairs in 15 minutes on one core, in memory that grows by the index of what is written only.

``--profile`` prints where the time goes instead.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import pandas as pd
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from pyterrier_mechir import BiEncoder, PatchScorer, PerturbDocs
from pyterrier_mechir.perturb import TFC1
from pyterrier_mechir.run import run_sweep

WORDS = [f"{first}{second}" for first in "bcdfglmnprst" for second in ("ane", "ile", "ore", "umb", "eat", "ock")]
SPECIALS = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


def tiny() -> BiEncoder:
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*SPECIALS.values(), "a", *WORDS])}, "[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=32, **SPECIALS)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=32,
        initializer_range=1.0,
    )
    return BiEncoder((BertModel(config, add_pooling_layer=False).eval(), tokenizer))


def frames(n_pairs: int, of_query: int = 100, of_frame: int = 1000) -> Iterator[pd.DataFrame]:
    """Documents of 4 to 12 words; none is like another, as each has its number."""
    rng = np.random.default_rng(0)
    words = np.array(WORDS)
    for begin in range(0, n_pairs, of_frame):
        numbers = np.arange(begin, min(begin + of_frame, n_pairs))
        yield pd.DataFrame(
            {
                "qid": [f"q{number // of_query}" for number in numbers],
                "query": [" ".join(words[[(number // of_query) % len(words), 7]]) for number in numbers],
                "docno": [f"d{number}" for number in numbers],
                "text": [" ".join(rng.choice(words, size)) for size in rng.integers(4, 13, len(numbers))],
            }
        )


def measured(n_pairs: int) -> Iterator[pd.DataFrame]:
    """The frames, and after each power of ten a line of what it took."""
    begin, done, report = time.perf_counter(), 0, 10_000
    first, before = 0, 0.0
    for frame in frames(n_pairs):
        yield frame
        done += len(frame)
        if done < min(report, n_pairs):
            continue
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        grown = f"{(peak - before) * 2**20 / (done - first):6.0f} bytes more a pair" if first else ""
        speed = done / (time.perf_counter() - begin)
        print(f"{done:9} pairs{peak:8.0f} MiB at the peak{speed:8.0f} pairs/s{grown}", flush=True)
        first, before, report = done, peak, report * 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--shard-size", type=int, default=256)
    parser.add_argument("--out", help="directory of the results, which is kept, and gone on with")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pipeline = PerturbDocs(TFC1()) >> PatchScorer(tiny(), "head")
    profiled: Any = cProfile.Profile() if options.profile else nullcontext()
    with tempfile.TemporaryDirectory() as directory, profiled:
        out = options.out or f"{directory}/results"
        run_sweep(pipeline, measured(options.pairs), out, shard_size=options.shard_size, verbose=False)
    if options.profile:
        pstats.Stats(profiled).sort_stats("cumulative").print_stats(45)


if __name__ == "__main__":
    main()
