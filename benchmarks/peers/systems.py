"""The systems that are compared, and the processes that they run in."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from protocol import Answer, Ask

HERE = Path(__file__).parent
MECHIR = "0.2.0"
MECHIR_PADS_TO = 300
"""Tokens to which MechIR's collator for bi-encoders pads documents unless told otherwise."""


class System(NamedTuple):
    """A way of sweeping.

    Args:
        name: in the table.
        worker: the file of its worker.
        note: what to know of it.
        width: up to how many tokens documents are padded; 0 for the longest of the batch.
        method: ``exact``, ``attribution`` or ``column``.
        sweeps_at_once: whether all sites are patched together, so that a sample of them says nothing.
        tasks: what it can do.
    """

    name: str
    worker: str
    note: str
    width: int = 0
    method: str = "exact"
    sweeps_at_once: bool = False
    tasks: tuple[str, ...] = ("head", "block")

    @property
    def is_slow(self) -> bool:
        """Whether it is timed on fewer pairs."""
        return self.width > 0


OURS = System("pyterrier_mechir, exact", "package_worker.py", "batches of its own, of like length", sweeps_at_once=True)
SYSTEMS = {
    "ours": OURS,
    "attribution": OURS._replace(
        name="pyterrier_mechir, attribution", method="attribution", note="an estimate; MechIR has none"
    ),
    "column": OURS._replace(
        name="pyterrier_mechir, column replay",
        method="column",
        note="an estimate, but of edited positions",
        tasks=("block",),
    ),
    "hooks": System("PyTorch hooks", "hooks_worker.py", "sdpa"),
    "nnsight": System("nnsight", "nnsight_worker.py", "sdpa"),
    "bridge": System("TransformerLens bridge", "bridge_worker.py", "eager attention"),
    "trimmed": System("MechIR, lengths trimmed", "mechir_worker.py", "by hand; its collator pads"),
    "mechir": System("MechIR as it comes", "mechir_worker.py", "its collator's padding", width=MECHIR_PADS_TO),
}


class Worker:
    """A process with one library and one model.

    Args:
        script: the worker's file.
        directory: of the checkpoint and the pairs.
        threads: of torch.
        python: the interpreter.
    """

    def __init__(self, script: str, directory: Path, threads: int, python: str):
        command = [python, str(HERE / script), str(directory), str(threads)]
        self.name, self.log = script, (directory / f"{script}.log").open("w+")
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self.log, text=True)

    def versions(self) -> dict[str, str]:
        """The versions of what it runs, once it has loaded; to be called once, before all else."""
        return json.loads(self._line())

    def run(self, ask: Ask) -> Answer:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(ask._asdict()) + "\n")
        self.process.stdin.flush()
        reply = json.loads(self._line())
        return Answer(np.array(reply["scores"]), reply["seconds"])

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.log.close()

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            raise SystemExit(f"{self.name} ended with an error:\n{self.log.read()[-2000:]}")
        return line


def mechir_python(directory: Path) -> str:
    """The interpreter of a virtual environment with MechIR, which is made where there is none.

    MechIR needs transformers 4 and TransformerLens 2, and so an environment of its own.
    """
    python = directory / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if not any(directory.glob("[Ll]ib/**/site-packages/mechir")):
        print(f"Installing MechIR {MECHIR} in {directory}: some minutes, once.", flush=True)
        venv.create(directory, with_pip=True)
        release = torch.__version__.partition("+")[0]
        packages = [f"torch=={release}", f"mechir=={MECHIR}"]
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
    return str(python)
