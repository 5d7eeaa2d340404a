"""Running a recorded run again from any layer with activations replaced.

Edits are carried on as far as is known what they change (:mod:`~pyterrier_mechir.models.carrying`), and the run is
taken up before the first of them (:mod:`~pyterrier_mechir.models.resuming`).

Shapes: ``B`` runs in the batch, ``n`` patched copies of each, ``S`` positions, ``D`` features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

from torch import Tensor

from pyterrier_mechir.models.carrying import carried, needed_to_carry
from pyterrier_mechir.models.components import INPUTS_OF_HEADS
from pyterrier_mechir.models.opened import Batch, Opened
from pyterrier_mechir.models.ports import on_port
from pyterrier_mechir.models.recording import Key, Recording, ending_early, keeping
from pyterrier_mechir.models.resuming import Edit, Resumption, copies, resumed


def needed_to_replay(edits: Sequence[tuple[int, str]], frozen: int = 0) -> list[tuple[int, str]]:
    """What must be recorded of a run to resume it before the first of some edited (layer, activation).

    Args:
        edits: (layer, activation) of each edit.
        frozen: in how many of the first layers heads are frozen.

    Returns:
        (layer, activation) of each activation: the input of the first layer that runs, unless the run starts at the
        tokens, z of the layers whose attention, or whose unedited heads, are not computed, and the stream that leaves
        the first layer, where edits of it may be carried on to there.
    """
    resumption = Resumption.at(edits, frozen)
    start = [] if resumption.start is None else [resumption.start]
    found = start + [(layer, "z") for layer in sorted(resumption.given.union(range(resumption.layer, frozen)))]
    return found if frozen else list(dict.fromkeys([*found, *needed_to_carry(edits)]))


def replay(opened: Opened, batch: Batch, base: Recording, edits: Sequence[Edit]) -> Tensor:
    """Scores of patched copies of recorded runs.

    Args:
        opened: the model, and how it runs.
        batch: the inputs of the ``B`` runs.
        base: their recording, with what :func:`needed_to_replay` names for the first edited layer.
        edits: the edits; all masks have the same ``n``.

    Returns:
        ``[n, B]``: the score of each copy of each run, or ``[n, B, ...]`` where the forward gives something else.
    """
    n = len(edits[0].mask)
    edits = carried(opened, batch, base, edits)
    with resumed(opened, base, edits, n, Resumption.at([edit.key for edit in edits])):
        scores = opened.forward({name: copies(value, n) for name, value in batch.items()})
    return scores.unflatten(0, (n, -1))


Run = Callable[[Opened, Batch, Recording, Sequence[Edit]], Tensor]
"""Gives the scores ``[n, B]`` of patched copies of recorded runs, as :func:`replay` does."""


def read(
    opened: Opened, batch: Batch, base: Recording, edits: Sequence[Edit], wanted: Sequence[Key]
) -> dict[Key, Tensor]:
    """Activations in patched copies of recorded runs whose heads are frozen; what follows them is not computed.

    All heads keep their recorded outputs z, but for those whose z, q, k or v is edited.

    Args:
        opened: the model, and how it runs.
        batch: the inputs of the ``B`` runs.
        base: their recording, with what :func:`needed_to_replay` names, heads frozen up to the last wanted layer.
        edits: the edits; all masks have the same ``n``.
        wanted: (layer, activation) of each, downstream of an edit: queries, keys and values, as they are before an edit
            of their own, or else the last layer's ``resid_post``.

    Returns:
        ``[n, B, S, D]`` of each; of ``resid_post`` at the first position only, where the score reads no other.
    """
    n = len(edits[0].mask)
    port, found = opened.anatomy.port, dict[Key, Tensor]()
    heads = [key for key in wanted if key[1] in INPUTS_OF_HEADS]
    with ExitStack() as stack:
        end = stack.enter_context(ending_early())

        def end_if_all() -> None:
            if len(found) == len(wanted):
                end()

        for key in heads:
            stack.enter_context(on_port(port(*key), keeping(found, key, end_if_all)))
        frozen = 1 + max(layer for layer, _ in wanted)
        resumption = Resumption.at([edit.key for edit in edits], frozen)
        stack.enter_context(resumed(opened, base, edits, n, resumption, frozen, heads or None))
        for key in set(wanted).difference(heads):
            stack.enter_context(on_port(port(*key), keeping(found, key, end_if_all)))
        opened.forward({name: copies(value, n) for name, value in batch.items()})
    return {key: value.unflatten(0, (n, -1)) for key, value in found.items()}
