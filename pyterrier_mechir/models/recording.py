"""A model's run with the activations that are asked for.

1. A function that keeps what passes is put at the port of each wanted activation (:mod:`~.models.ports`).
2. The model's own forward runs once on the batch.
3. What it gave, and what passed, is a :class:`Recording`; a run that is to be continued elsewhere takes up from there
   (:mod:`~.models.replay`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

from torch import Tensor

from pyterrier_mechir.models.opened import Batch, Opened
from pyterrier_mechir.models.ports import on_port

Key = tuple[int, str]
"""A layer, and one of its activations."""


class _Ended(Exception):
    """Ends a run of which nothing more is wanted."""


@contextmanager
def ending_early() -> Iterator[Callable[[], NoReturn]]:
    """A ``with`` block that a forward pass can be stopped in, once all that is wanted of the pass has been read.

    Yields:
        A function that leaves this block, to be called from within the forward pass. Where one such block stands
        within another, each function leaves its own block.
    """
    mark = _Ended()

    def end() -> NoReturn:
        raise mark

    try:
        yield end
    except _Ended as ended:
        if ended is not mark:
            raise


@dataclass(frozen=True)
class Recording:
    """One run of a batch.

    Args:
        scores: what the forward gave, ``[B]`` for scores, ``[B, ...]`` for what scores are made of.
        activations: ``[B, S, D]`` of each (layer, activation) that was asked for.
    """

    scores: Tensor
    activations: dict[Key, Tensor]

    def __getitem__(self, key: Key) -> Tensor:
        return self.activations[key]

    def rows(self, index: Any, keys: Collection[Key] | None = None) -> Recording:
        """The recording of some of the ``B`` runs, chosen by anything that indexes a tensor's first axis.

        Args:
            index: the runs.
            keys: (layer, activation) of the activations to keep; None keeps all.
        """
        keys = self.activations if keys is None else keys
        return Recording(self.scores[index], {key: self.activations[key][index] for key in keys})


def record(opened: Opened, batch: Batch, wanted: Collection[Key]) -> Recording:
    """Run a batch and keep the wanted activations.

    Args:
        opened: the model, and how it runs.
        batch: its inputs, for ``B`` runs.
        wanted: (layer, activation) of each activation to keep.

    Returns:
        What the forward gives, and activations ``[B, S, D]``.

    Raises:
        RuntimeError: the forward ran other modules than those of the opened model.
    """
    kept: dict[Key, Tensor] = {}
    with ExitStack() as stack:
        for key in wanted:
            stack.enter_context(on_port(opened.anatomy.port(*key), keeping(kept, key)))
        scores = opened.forward(batch)
    missed = next((key for key in wanted if key not in kept), None)
    if missed is not None:
        raise RuntimeError(
            f"the model ran without {missed[1]} of layer {missed[0]}, so nothing can be patched there; an encode() of "
            "your own should run ranker.twin, not ranker.model."
        )
    return Recording(scores, kept)


def keeping(kept: dict[Any, Tensor], key: Any, then: Callable[[], object] | None = None) -> Callable[[Tensor], None]:
    """A function for a port, which keeps the activation that passes and changes nothing.

    Args:
        kept: the dict that the activation is put into.
        key: under which key.
        then: called after each activation that was kept, such as to end the run.
    """

    def keep(value: Tensor) -> None:
        kept[key] = value
        if then is not None:
            then()

    return keep
