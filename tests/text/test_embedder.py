"""Similar words need a tokenizer and an embedding table, and no ranker; nothing about texts loads a model's library."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import numpy as np
import pytest
from small_models import tokenizer

from pyterrier_mechir import perturb, text
from pyterrier_mechir.perturb import STMC1, TFC1, Chain, OneOf, RandomTerm
from pyterrier_mechir.text.similar import Embedder, Neighbours, Similar
from pyterrier_mechir.text.vocabulary import Vocabulary


class Table:
    """A tokenizer with an embedding table, and nothing else."""

    def __init__(self):
        self.tokenizer = tokenizer("bert")
        self.vocabulary = Vocabulary(self.tokenizer)
        self.table = np.random.default_rng(0).normal(size=(len(self.tokenizer), 8)).astype(np.float32)
        ocean, moon, tides = self.tokenizer.convert_tokens_to_ids(["ocean", "moon", "tides"])
        self.table[[ocean, moon]] = 2 * self.table[tides], self.table[tides] + 0.1

    def embeddings(self):
        return self.table


def test_every_ranker_is_an_embedder(ranker):
    assert isinstance(ranker, Embedder) and isinstance(Table(), Embedder)
    weight = ranker.model.get_input_embeddings().weight.detach().numpy()
    assert ranker.embeddings().dtype == np.float32
    assert ranker.embeddings().tobytes() == weight.tobytes()


@pytest.mark.parametrize("other", [dict, str, lambda term: [term], Table, Vocabulary])
def test_nothing_else_is(other):
    assert not isinstance(other, Embedder)


def test_neighbours_are_of_any_table():
    embedder = Table()
    similar = Similar.of(embedder)
    assert isinstance(similar, Neighbours) and similar == Neighbours(embedder)
    assert list(similar("tides"))[:2] == ["ocean", "moon"]


def test_perturbations_are_bound_to_any_embedder():
    embedder, idf = Table(), {"ocean": 2.0, "moon": 2.0, "tides": 2.0}
    bound = (STMC1() | TFC1()).bind(embedder)
    assert isinstance(bound, Chain) and bound == STMC1(similar=embedder) | TFC1()
    assert OneOf([STMC1(), TFC1()]).bind(embedder) == OneOf([STMC1(similar=embedder), TFC1()])
    assert RandomTerm(STMC1(), idf).bind(embedder) == RandomTerm(STMC1(similar=embedder), idf, ranker=embedder)
    assert STMC1(idf).bind(embedder) == STMC1(idf)
    assert bound("Water and bread.", "tides") == "Water and bread. ocean tides"


def names(package) -> list[str]:
    return [module.name for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]


def test_neither_texts_nor_perturbations_load_a_model_library():
    program = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    print(name, sorted({'torch', 'transformers', 'pandas', 'pyterrier'} & sys.modules.keys()))\n"
    )
    modules = [*names(text), "pyterrier_mechir.perturb", *names(perturb)]
    done = subprocess.run([sys.executable, "-c", program, *modules], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{name} []" for name in modules]
