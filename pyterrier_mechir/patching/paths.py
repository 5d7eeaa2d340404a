"""Path patching: what a sender does to receivers, and through them to the score.

After Wang et al. (ICLR 2023, appendix B), in three runs. The sender takes its value from the source run in the target
run, while every other head keeps the output z that it has there; MLPs, norms and embeddings are computed. From this the
receivers' activations are read. They are patched, at all positions, into a target run that is otherwise untouched. So
the paths from sender to receiver are the direct one and those through MLPs, never those through another head.

The final residual stream is a receiver whose patched run is the first one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyterrier_mechir.patching.receivers import reaches
from pyterrier_mechir.patching.replay import Batch, Edit, Recording, needed_to_replay, read, replay
from pyterrier_mechir.patching.sites import COMPONENTS, Site

if TYPE_CHECKING:
    from pyterrier_mechir.rankers.base import Ranker


def needed_to_patch(edits: Sequence[tuple[int, str]], receivers: Sequence[Site]) -> list[tuple[int, str]]:
    """What must be recorded of a run to patch some (layer, activation), on all paths or on those to receivers."""
    if not receivers:
        return needed_to_replay(edits)
    heads = _reached(edits, receivers)
    needed = needed_to_replay(edits, _n_frozen(heads))
    return needed if _is_final(receivers) else needed + needed_to_replay(list(heads))


def patched_scores(
    ranker: Ranker, batch: Batch, base: Recording, edits: Sequence[Edit], receivers: Sequence[Site]
) -> Tensor:
    """Scores of copies of recorded runs, patched on all paths or on those to receivers.

    Args:
        ranker: the model.
        batch: the inputs of the ``B`` runs.
        base: their recording, with what :func:`needed_to_patch` names.
        edits: the senders; all masks have the same ``n``.
        receivers: none, the final stream, or queries, keys and values of heads; those that no sender is upstream of
            keep their values.

    Returns:
        ``[n, B]``: the score of each copy of each run.
    """
    if not receivers:
        return replay(ranker, batch, base, edits)
    heads = _reached([(edit.layer, edit.activation) for edit in edits], receivers)
    if _is_final(receivers):
        return replay(ranker, batch, base, edits, _n_frozen(heads))
    received = []
    for (layer, activation), values in read(ranker, batch, base, edits, list(heads)).items():
        mask = torch.zeros((len(values), 1, 1, ranker.n_heads), dtype=torch.bool, device=values.device)
        mask[..., heads[layer, activation]] = True
        received.append(Edit(layer, activation, values, mask))
    return replay(ranker, batch, base, received)


def _is_final(receivers: Sequence[Site]) -> bool:
    return receivers[0].component == "resid_post"


def _n_frozen(heads: dict[tuple[int, str], list[int]]) -> int:
    """In how many of the first layers heads are frozen: as many as lead to the last receiver."""
    return 1 + max(layer for layer, _ in heads)


def _reached(edits: Sequence[tuple[int, str]], receivers: Sequence[Site]) -> dict[tuple[int, str], list[int]]:
    """The heads of each (layer, activation) that receive what some edits change."""
    heads: dict[tuple[int, str], list[int]] = {}
    for receiver in receivers:
        if any(reaches(*edit, receiver) for edit in edits):
            heads.setdefault((receiver.layer, COMPONENTS[receiver.component]), []).append(receiver.head or 0)
    return heads
