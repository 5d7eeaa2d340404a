"""Sweeps on the workers of a Ray cluster; Ray Data does the placing, the retries and the spilling."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa

from pyterrier_mechir.models.batching import tokens_at_once
from pyterrier_mechir.results.frames import perturbed_side
from pyterrier_mechir.results.stored.ledger import Index
from pyterrier_mechir.results.stored.tables import to_frame, to_table
from pyterrier_mechir.run.notes import Notes, heard
from pyterrier_mechir.run.source import TOPICS, Source, applied
from pyterrier_mechir.stages.base.stored_stage import StoredStage
from pyterrier_mechir.stages.results_writer import ResultsWriter, scored, with_hashes, with_one_perturbation

_STORE = 2**29
"""Bytes of shared memory that a cluster started here has at least; what is beyond them goes to disk."""

_SETTINGS = {"enable_progress_bars": False, "raise_original_map_exception": True}
"""Of Ray Data, for as long as a run takes."""

_LOGGERS = {
    "ray.data": logging.WARNING,
    "ray.data.exceptions": logging.CRITICAL,
    "ray.data._internal.execution.streaming_executor_state": logging.CRITICAL,
    "ray.data._internal.progress": logging.ERROR,
}
"""What is heard of Ray Data beside the run's own progress bar and errors."""

_CORES = 4
"""Cores for each worker where there is no GPU."""


def run_on_ray(
    writer: ResultsWriter,
    scorer: StoredStage,
    before: Sequence[Any],
    source: Source,
    n_workers: int | None,
    note: Callable[[str], object],
    done: Callable[[int, int], object],
) -> None:
    """Score what is not written on the workers of a cluster, and write it here as it comes.

    Args:
        writer: to the artifact.
        scorer: the scorer, of which every worker gets a copy.
        before: the stages before it.
        source: what goes into them.
        n_workers: how many workers; None decides by the cluster.
        note: called with what the workers warn of.
        done: as for :meth:`ResultsWriter.stream`.

    Raises:
        ImportError: Ray is not installed.
        ValueError: a stage cannot be sent to workers; and whatever a stage raises there.
    """
    ray = _ray()
    first, source = source.peeked()
    if first is None:
        return
    with heard(note):
        given = applied(before, first.head(1))
        like = scorer.prepared(given)
    with _cluster(ray, scorer):
        packed: dict[str, Any] = {"stages": []}
        for stage in before:
            with _sending(stage):
                packed["stages"].append(ray.put(stage))
        with _sending(scorer):
            packed["scorer"] = ray.put(_packed(scorer))

        def computed(index: Index) -> Iterator[pa.Table]:
            n_written = len(index) if source.n_pairs is None else min(len(index), source.n_pairs)
            done(n_written, n_written)
            given_to = {**packed, "index": ray.put(index)}
            workers = _Workers.of(ray, n_workers, str(scorer.ranker.device))
            blocks = _data(ray, source, writer.shard_size)
            kinds = None if source.path is not None else _kinds(first.head(1))
            prepared = blocks.map_batches(
                _prepared,
                fn_kwargs={"packed": given_to, "like": (scorer.text_field, scorer.n_units), "kinds": kinds},
                batch_size=None,
                batch_format="pyarrow",
            ).repartition(target_num_rows_per_block=writer.shard_size)
            results = prepared.map_batches(
                _Worker,
                fn_constructor_args=(given_to, _kinds(given), workers.threads, workers.device),
                batch_size=writer.shard_size,
                batch_format="pyarrow",
                num_cpus=workers.cpus,
                num_gpus=workers.gpus,
                compute=ray.data.ActorPoolStrategy(size=workers.n),
            )
            for batch in results.iter_batches(batch_size=None, batch_format="pyarrow"):
                for row in batch.to_pylist():
                    for message in json.loads(row["notes"]):
                        note(message)
                    if row["results"]:
                        yield pa.ipc.open_stream(row["results"]).read_all()

        with _own_errors(ray):
            writer.receive(like, computed, done)


def _data(ray: Any, source: Source, size: int) -> Any:
    """The source as a data set, in blocks of about ``size`` rows."""
    if source.path is None:
        return ray.data.from_arrow_refs(
            [ray.put(to_table(block, as_parts=True)) for block in with_one_perturbation(source.blocks)]
        )
    return ray.data.read_parquet(source.path).repartition(
        target_num_rows_per_block=TOPICS if source.n_pairs is None else size
    )


def _prepared(
    block: pa.Table, packed: dict[str, Any], like: tuple[str, int], kinds: dict[bytes, bytes] | None
) -> pa.Table:
    """What the stages before the scorer make of a block, without the pairs that are written."""
    frame = block.to_pandas() if kinds is None else to_frame(block.replace_schema_metadata(kinds))
    frame = applied([_fetched(stage) for stage in packed["stages"]], frame)
    made = to_table(frame, as_parts=True)
    if len(frame) and perturbed_side(frame, like[0]) is not None:
        made = made.take(_fetched(packed["index"]).lacking(with_hashes(frame, *like)))
    return made


class _Worker:
    """A copy of the scorer on some of the processors, or on a GPU.

    Args:
        packed: references to the scorer and the index.
        kinds: what the columns of the frames hold, and their attrs, as :func:`to_table` says it.
        threads: how many to use.
        device: where the ranker runs.
    """

    def __init__(self, packed: dict[str, Any], kinds: dict[bytes, bytes], threads: int, device: str):
        import ray
        import torch

        torch.set_num_threads(threads)
        content = BytesIO(ray.get(packed["scorer"]))
        self._scorer: StoredStage
        self._scorer, kind = torch.load(content, map_location=device, weights_only=False)
        ranker = self._scorer.ranker
        if ranker.device.type != kind:
            ranker.batch_tokens = tokens_at_once(ranker.device)
        self._index: Index = ray.get(packed["index"])
        self._kinds = kinds

    def __call__(self, block: pa.Table) -> dict[str, list[Any]]:
        notes, frame = Notes(), to_frame(block.replace_schema_metadata(self._kinds))
        with heard(notes.add):
            made = with_hashes(self._scorer.prepared(frame), self._scorer.text_field, self._scorer.n_units)
            part = made.iloc[self._index.lacking(made)]
            results = _content(to_table(scored(self._scorer, part))) if len(part) else b""
        return {"results": [results], "notes": [json.dumps(notes.messages)]}


def _kinds(frame: pd.DataFrame) -> dict[bytes, bytes]:
    """What the columns of the parts of a frame hold, and its attrs, as their tables say it."""
    return dict(to_table(frame, as_parts=True).schema.metadata)


def _content(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue().to_pybytes()


@lru_cache(maxsize=8)
def _fetched(reference: Any) -> Any:
    import ray

    return ray.get(reference)


def _packed(scorer: StoredStage) -> bytes:
    """A scorer as any device reads it."""
    import torch
    from ray import cloudpickle

    content = BytesIO()
    torch.save((scorer, scorer.ranker.device.type), content, pickle_module=cloudpickle)
    return content.getvalue()


@contextmanager
def _sending(stage: Any) -> Iterator[None]:
    """Say which stage cannot be sent to workers."""
    try:
        yield
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{stage!r} cannot be sent to Ray's workers ({reason}); run it first, and give its output as frame."
        ) from error


class _Workers(NamedTuple):
    """How a cluster is shared out.

    Args:
        n: workers that score.
        threads: of each of them.
        cpus: what Ray counts for each of them, so that one core of each machine is left for the stages before.
        gpus: likewise.
        device: where their rankers run.
    """

    n: int
    threads: int
    cpus: float
    gpus: int
    device: str

    @classmethod
    def of(cls, ray: Any, n: int | None, device: str) -> _Workers:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cores, gpus = (int(sum(node.get(kind, 0) for node in nodes)) for kind in ("CPU", "GPU"))
        largest = int(max(node.get("CPU", 1) for node in nodes))
        n = min(n or gpus, gpus) if gpus else min(n or max(1, cores // _CORES), cores)
        threads = max(1, min(cores // n, largest))
        on = "cuda" if gpus else "cpu" if device.startswith("cuda") else device
        return cls(n, threads, round(threads * (largest - 1) / largest, 3), int(gpus > 0), on)


def _ray() -> Any:
    """Ray.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError('engine="ray" needs Ray: pip install "pyterrier-mechir[ray]".') from error
    return ray


@contextmanager
def _cluster(ray: Any, scorer: StoredStage) -> Iterator[None]:
    """Be connected to a cluster: the one that there is, or one of this machine for as long as it is needed."""
    begun = not ray.is_initialized()
    quiet = {"log_to_driver": False, "logging_level": logging.WARNING}
    if begun:
        try:
            ray.init(address=os.environ.get("RAY_ADDRESS") or "auto", **quiet)
        except ConnectionError:
            if os.environ.get("RAY_ADDRESS"):
                raise
            weights = sum(weight.nbytes for weight in scorer.ranker.model.parameters())
            ray.init(address="local", include_dashboard=False, object_store_memory=_STORE + weights, **quiet)
    context = ray.data.DataContext.get_current()
    before = {name: getattr(context, name) for name in _SETTINGS}
    for name, value in _SETTINGS.items():
        setattr(context, name, value)
    for name, level in _LOGGERS.items():
        logging.getLogger(name).setLevel(level)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)
        if begun:
            ray.shutdown()


@contextmanager
def _own_errors(ray: Any) -> Iterator[None]:
    """Raise what a stage raised as it would be raised here."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
