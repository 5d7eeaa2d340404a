"""Everything runs offline and on few threads."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from collections.abc import Iterator

import pyterrier.documentation
import pytest
import torch
from noise import Noise
from small_models import build
from tolerance import set_noise

from pyterrier_mechir import BiEncoder, CrossEncoder

_LONGEST = (
    "test_examples.py",
    "test_lessons.py",
    "test_verify.py",
    "test_run.py",
    "test_laws.py",
    "test_edits.py",
    "test_pages.py",
    "test_decoders.py",
    "test_results.py",
    "test_recipes.py",
    "test_positions.py",
    "test_left_out.py",
    "test_column.py",
    "test_exactness.py",
    "test_gates.py",
    "test_mono_t5.py",
    "test_columns.py",
)
"""The files that take 20 seconds or more, the longest first."""

torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
pyterrier.documentation._cached_objects_inv = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--noise",
        type=float,
        default=0.0,
        metavar="SIZE",
        help="multiply every entry of every matrix product by a random number from 1 - SIZE to 1 + SIZE, as if it came "
        "from another processor, to see what depends on the last bits; 1e-6 is several times what float32 rounds off",
    )


def pytest_configure(config: pytest.Config) -> None:
    set_noise(config.getoption("noise"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The files that take longest go first, so that no worker is left with one when the others have done."""
    items.sort(key=lambda item: _LONGEST.index(item.path.name) if item.path.name in _LONGEST else len(_LONGEST))
    if config.getoption("noise"):
        skip = pytest.mark.skip(reason="compares results bit for bit, which noise (--noise) changes")
        for item in items:
            if item.get_closest_marker("bits"):
                item.add_marker(skip)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Fixtures and tests run in noise, the same whenever the test runs with them."""
    size = item.config.getoption("noise")
    if not size:
        return (yield)
    with Noise(size):
        return (yield)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For tiny models, which a second thread only slows down."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def bi_encoder():
    return BiEncoder(build("bert", classifier=False))


@pytest.fixture(scope="module")
def cross_encoder():
    return CrossEncoder(build("bert", classifier=True))


@pytest.fixture(params=["bi_encoder", "cross_encoder"])
def ranker(request):
    return request.getfixturevalue(request.param)
