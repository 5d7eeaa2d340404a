"""First-stage retrieval of a collection."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyterrier as pt

MODELS = ("bm25", "dph", "pl2", "qld")


def first_stage(
    dataset: Any, path: Path, num_results: int, wmodel: str = "bm25", *, say: Callable[[str], None]
) -> tuple[pt.Transformer, Any]:
    """A retriever with the texts of what it retrieves, and where document frequencies are to be read.

    Args:
        dataset: with a corpus.
        path: of its index, which is made if it is not there.
        num_results: documents for each query.
        wmodel: of :data:`MODELS`.
        say: called with what is done.
    """
    try:
        from pyterrier_pisa import PisaIndex
    except ImportError:
        say("PISA is not available on this platform; indexing with PyTerrier's Terrier, which needs Java.")
        if not (path / "data.properties").exists():
            pt.IterDictIndexer(str(path), overwrite=True).index(documents(dataset))
        retriever = pt.terrier.Retriever(str(path), wmodel=wmodel.upper(), num_results=num_results)
        return retriever >> texts(dataset), documents(dataset)
    with quiet():
        if not PisaIndex(str(path)).built():
            begun = path.with_name(f"{path.name}.part")
            shutil.rmtree(begun, ignore_errors=True)
            begun.parent.mkdir(parents=True, exist_ok=True)
            PisaIndex(str(begun), text_field="text").index(documents(dataset))
            begun.rename(path)
        index = PisaIndex(str(path), text_field="text")
        retriever = getattr(index, wmodel)(num_results=num_results)
    say(f"Indexed {len(index)} documents with PISA.")
    return retriever >> texts(dataset), index


def documents(dataset: Any) -> Iterator[dict[str, str]]:
    """The documents of a corpus, each with one text."""
    for document in dataset.get_corpus_iter(verbose=False):
        yield {"docno": document["docno"], "text": _joined(document)}


def _joined(document: dict[str, Any]) -> str:
    """The text of a document: its field ``text``, else all its fields that are strings."""
    if isinstance(document.get("text"), str):
        return str(document["text"])
    return " ".join(value for field, value in document.items() if field != "docno" and isinstance(value, str))


def texts(dataset: Any) -> pt.Transformer:
    """A stage that adds the texts of documents."""
    fields = next(iter(dataset.get_corpus_iter(verbose=False)), {"text": ""})
    if isinstance(fields.get("text"), str):
        return dataset.text_loader("text")
    return dataset.text_loader("*") >> pt.apply.text(lambda row: _joined({field: row[field] for field in fields}))


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what C++ and libraries write to the process's standard output and error."""
    _flush()
    saved = [os.dup(descriptor) for descriptor in (1, 2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for descriptor in (1, 2):
            os.dup2(nowhere, descriptor)
        yield
    finally:
        _flush()
        for descriptor, copy in zip((1, 2), saved, strict=True):
            os.dup2(copy, descriptor)
            os.close(copy)
        os.close(nowhere)


def _flush() -> None:
    """Empty the buffers of Python and, where there is one, of the C library."""
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name == "posix":
        ctypes.CDLL(None).fflush(None)
