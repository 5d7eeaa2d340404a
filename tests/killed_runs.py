"""Runs that are killed at random moments, for test_results.py: a process that forks each run, and kills it.

It writes nothing itself, so that no library has threads when it forks.

Usage: ``python killed_runs.py DIRECTORY``; leaves ``undisturbed`` and ``killed`` there, and prints what happened.
"""

import json
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")

import pandas as pd
import torch
from small_models import QUERIES, TEXTS, build
from tqdm import tqdm

from pyterrier_mechir import BiEncoder, PatchScorer

torch.set_num_threads(1)

# tqdm's lock is shared by forked processes, and a child that is killed within it keeps it for ever; its monitor is a
# thread. Both only matter to processes that fork.
tqdm.set_lock(threading.RLock())
tqdm.monitor_interval = 0


def main(directory: Path) -> None:
    frame = pd.DataFrame(
        [
            {"qid": f"q{q}", "query": query, "docno": f"d{d}-{copy}", "text": f"{text} {copy}"}
            for q, query in enumerate(QUERIES)
            for d, text in enumerate(TEXTS)
            for copy in "xyz"
        ]
    )
    scorer = PatchScorer(BiEncoder(build("bert", classifier=False)))
    scorer.about(fingerprint=True)
    scorer(frame.head(9))

    def begun(path: Path) -> int:
        child = os.fork()
        if child == 0:
            scorer.store(path, shard_size=3)(frame)
            os._exit(0)
        return child

    begin = time.perf_counter()
    os.waitpid(begun(directory / "undisturbed"), 0)
    whole = time.perf_counter() - begin
    rng, path, written = random.Random(0), directory / "killed", []
    for _ in range(20):
        child = begun(path)
        time.sleep(rng.uniform(0, whole / 9))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        written.append(len(list((path / "shards").glob("*.parquet"))) if path.exists() else 0)
    os.waitpid(begun(path), 0)
    print(json.dumps({"kills": len(written), "progressed": len(set(written)), "written": written, "whole": whole}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
