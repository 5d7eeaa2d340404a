"""Path patching: what a sender does to receivers, and through them to the score.

After Wang et al. (ICLR 2023, appendix B):

1. Both sides of a pair run, and what is needed of them is recorded.
2. The target runs again with the sender's value taken from the source, while every other head keeps the output z that
   it has in the target; MLPs, norms and embeddings are computed. The receivers' activations are read from this run.
3. The target runs once more, with nothing patched but the receivers' activations, at all positions, as they were in the
   second run. Its score is the patched score.

So the paths from sender to receiver are the direct one and those through MLPs, never those through another head.

With heads frozen no position reads another, so that one run serves all positions at which a sender is patched apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pyterrier_mechir.models.components import COMPONENTS, INPUTS_OF_HEADS
from pyterrier_mechir.models.opened import Batch, Opened
from pyterrier_mechir.models.recording import Recording
from pyterrier_mechir.models.replay import Run, needed_to_replay, read, replay
from pyterrier_mechir.models.resuming import Edit, at_positions
from pyterrier_mechir.models.sites import Site
from pyterrier_mechir.patching.receivers import reaches


def needed_to_patch(senders: Sequence[tuple[int, str]], receivers: Sequence[Site]) -> list[tuple[int, str]]:
    """What must be recorded of a run to patch some (layer, activation), on all paths or on those to receivers."""
    if not receivers:
        return needed_to_replay(senders)
    reached = list(_reached(senders, receivers))
    n_frozen = 1 + max(layer for layer, _ in reached)
    return [*needed_to_replay(senders, n_frozen), *reached, *needed_to_replay(reached)]


def patched_scores(
    opened: Opened,
    batch: Batch,
    base: Recording,
    senders: Sequence[Edit],
    which: Sequence[int],
    at: Tensor,
    receivers: Sequence[Site] = (),
    run: Run = replay,
) -> Tensor:
    """Scores of copies of recorded runs, patched on all paths or on those to receivers.

    Args:
        opened: the model, and how it runs.
        batch: the inputs of the ``B`` runs.
        base: their recording, with what :func:`needed_to_patch` names.
        senders: the edits, at all positions, of each sender.
        which: the sender of each copy.
        at: at which positions each copy is patched, broadcastable to ``[n, B, S]``.
        receivers: none, the final stream, or queries, keys and values of heads; those that no sender is upstream of
            keep their values.
        run: what gives the scores of patched copies of recorded runs, without receivers.

    Returns:
        ``[n, B]``: the score of each copy of each run.
    """
    if not receivers:
        return run(opened, batch, base, _at_positions(senders, which, at))
    if not INPUTS_OF_HEADS.isdisjoint(edit.activation for edit in senders):
        senders, which, at = _at_positions(senders, which, at), range(len(which)), at.new_ones(1, 1, 1)
    reached = _reached([(edit.layer, edit.activation) for edit in senders], receivers)
    edits = []
    for (layer, activation), values in read(opened, batch, base, senders, list(reached)).items():
        length = values.shape[2]
        received = torch.where(at[..., :length, None], values[list(which)], base[layer, activation][:, :length])
        mask = at.new_zeros((len(received), 1, 1, opened.anatomy.groups(activation)))
        mask[..., reached[layer, activation]] = True
        edits.append(Edit(layer, activation, received, mask))
    return replay(opened, batch, base, edits)


def _at_positions(edits: Sequence[Edit], which: Sequence[int], at: Tensor) -> list[Edit]:
    places = [at_positions(at, edit.source.shape[-2])[..., None] for edit in edits]
    return [replace(edit, mask=edit.mask[list(which)] & here) for edit, here in zip(edits, places, strict=True)]


def _reached(senders: Sequence[tuple[int, str]], receivers: Sequence[Site]) -> dict[tuple[int, str], list[int]]:
    """The heads of each (layer, activation) that receive what some activations change."""
    heads: dict[tuple[int, str], list[int]] = {}
    for receiver in receivers:
        if any(reaches(*sender, receiver) for sender in senders):
            heads.setdefault((receiver.layer, COMPONENTS[receiver.component]), []).append(receiver.number or 0)
    return heads
