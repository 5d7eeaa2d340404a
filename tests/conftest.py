"""Everything runs offline and on few threads."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from collections.abc import Iterator

import pyterrier.documentation
import pytest
import torch
from small_models import build

from pyterrier_mechir import BiEncoder, CrossEncoder

torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
pyterrier.documentation._cached_objects_inv = {}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The file that takes longest goes first, so that no worker is left with it when the others have done."""
    items.sort(key=lambda item: item.path.name != "test_examples.py")


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
