"""Collections that come with the package, through ``pt.get_dataset("mechir:...")``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from importlib.resources import files
from typing import ClassVar

import pandas as pd
import pyterrier as pt


class EmbeddedDataset(pt.datasets.Dataset):
    """A test collection whose files are part of the package.

    Args:
        name: its folder: ``passages.tsv`` (docno, text), ``topics.tsv`` (qid, query) and ``qrels.txt`` (TREC).
    """

    def __init__(self, name: str):
        self._name = name

    def __repr__(self) -> str:
        return f"EmbeddedDataset({'mechir:' + self._name!r})"

    def _lines(self, file: str) -> list[str]:
        return (files(__name__) / self._name / file).read_text(encoding="utf-8").splitlines()

    @cached_property
    def _texts(self) -> dict[str, str]:
        return dict(line.split("\t", 1) for line in self._lines("passages.tsv"))

    def get_corpus_iter(self, *, verbose: bool = True) -> Iterator[dict[str, str]]:
        """Documents as ``{"docno": ..., "text": ...}``; ``verbose`` is accepted for compatibility."""
        for docno, text in self._texts.items():
            yield {"docno": docno, "text": text}

    def get_corpus_lang(self) -> str:
        return "en"

    def get_topics_lang(self) -> str:
        return "en"

    def get_topics(self, variant: str | None = None) -> pd.DataFrame:
        """Frame of ``qid, query``."""
        return pd.DataFrame([line.split("\t", 1) for line in self._lines("topics.tsv")], columns=["qid", "query"])

    def get_qrels(self, variant: str | None = None) -> pd.DataFrame:
        """Frame of ``qid, docno, label``; labels 0 (off topic) to 3 (answers the query)."""
        rows = [line.split() for line in self._lines("qrels.txt")]
        return pd.DataFrame(
            [(qid, docno, int(label)) for qid, _, docno, label in rows], columns=["qid", "docno", "label"]
        )

    def text_loader(self, fields: list[str] | str = "*", *, verbose: bool = False) -> pt.Transformer:
        """A stage that adds the column ``text`` by docno.

        Raises:
            ValueError: fields other than ``text``.
        """
        if fields not in ("*", "text", ["text"]):
            raise ValueError(f"{self!r} has one field, 'text'; it has no {fields!r}.")
        return EmbeddedTextLoader(self)

    def _describe_component(self, component: str) -> bool:
        return component in ("topics", "qrels", "corpus")


class EmbeddedTextLoader(pt.Transformer):
    """Adds the text of each document of an embedded dataset. Expected input column: ``docno``. Adds ``text``."""

    schematic: ClassVar = {"label": "TextLoader"}

    def __init__(self, dataset: EmbeddedDataset):
        self.dataset = dataset

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Add the texts.

        Raises:
            pt.validate.InputValidationError: there is no ``docno``.
            KeyError: a docno that the dataset does not have.
        """
        pt.validate.columns(inp, includes=["docno"], context=self)
        texts = self.dataset._texts
        unknown = next((docno for docno in inp["docno"] if docno not in texts), None)
        if unknown is not None:
            raise KeyError(f"{self.dataset!r} has no document {unknown!r}.")
        return inp.assign(text=pd.Series([texts[docno] for docno in inp["docno"]], index=inp.index, dtype="str"))

    def fuse_rank_cutoff(self, k: int) -> pt.Transformer:
        """Let a rank cutoff pass to the left."""
        return pt.RankCutoff(k) >> self

    def __repr__(self) -> str:
        return f"EmbeddedTextLoader({self.dataset!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EmbeddedTextLoader) and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))


class MechirDatasetProvider(pt.datasets.DatasetProvider):
    """Provides ``mechir:lab`` to ``pt.get_dataset``."""

    _names = ("lab",)

    def get_dataset(self, name: str) -> EmbeddedDataset:
        """The dataset of a name.

        Raises:
            KeyError: there is none.
        """
        if name not in self._names:
            raise KeyError(f"no dataset {name!r}; pyterrier_mechir has {', '.join(self._names)}.")
        return EmbeddedDataset(name)

    def list_dataset_names(self) -> Iterable[str]:
        return self._names
