"""How much memory a model takes, and how much there is."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

_CGROUP = Path("/sys/fs/cgroup")


def n_bytes(model: nn.Module, dtype: torch.dtype) -> int:
    """What the weights of a model take in a precision."""
    return sum(weight.numel() for weight in model.parameters()) * dtype.itemsize


def n_bytes_of_files(directory: str | Path) -> int:
    """What the weights in a directory take in float32, as its files tell without being loaded; 0 where there are none.

    Of a pickled checkpoint, the size of the file counts, which is less for one of 16 bits.
    """
    path, n = Path(directory), 0
    for file in path.glob("**/*.safetensors"):
        with safe_open(file, framework="pt") as stored:
            for key in stored.keys():  # noqa: SIM118
                n += 4 * math.prod(stored.get_slice(key).get_shape())
    return n or sum(file.stat().st_size for file in path.glob("**/pytorch_model*.bin"))


def available(device: Any = "cpu") -> int | None:
    """Bytes that are free; None where the system does not tell."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = [value for value in (_of_system(), _of_cgroup()) if value is not None]
    return min(found, default=None)


def _of_system() -> int | None:
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        lines = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines() if ":" in line)
        if "MemAvailable" in lines:
            return int(lines["MemAvailable"].split()[0]) * 1024
    names = getattr(os, "sysconf_names", {})
    if {"SC_AVPHYS_PAGES", "SC_PAGE_SIZE"} <= names.keys():
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _of_cgroup() -> int | None:
    """What a container may still take."""
    limit, used = _CGROUP / "memory.max", _CGROUP / "memory.current"
    try:
        most = limit.read_text(encoding="ascii").strip()
        return None if most == "max" else max(0, int(most) - int(used.read_text(encoding="ascii")))
    except (OSError, ValueError):
        return None


def fits(needed: int, device: Any = "cpu") -> bool:
    """Whether so many bytes are free, as far as the system tells."""
    free = available(device)
    return free is None or needed <= free


def check_memory(directory: str | Path, copies: int = 2) -> None:
    """Check that a checkpoint can be loaded, once for the ranker and once to compare with.

    Args:
        directory: the checkpoint; of an id on the hub nothing is checked.
        copies: how many times its weights are held.

    Raises:
        ValueError: it needs more memory than is free; both are said.
    """
    needed = copies * n_bytes_of_files(directory) if Path(directory).is_dir() else 0
    free = available()
    if free is not None and needed > free:
        gib = 1024**3
        raise ValueError(
            f"{str(directory)!r} needs some {needed / gib:.1f} GiB of memory to be verified ({copies} copies of its "
            f"weights in float32), and {free / gib:.1f} GiB are free; use a machine with more."
        )
