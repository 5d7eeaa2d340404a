"""Gradients of anything that is made of scores, at numbers that these depend on.

1. Scores are computed without a graph, and the gradient at them of what is made of them is cheap.
2. Batch by batch, the model runs again in a graph, from the batch's scores back to the numbers; a graph is as large as
   one batch, however many texts there are (GradCache: Gao, Zhang, Han and Callan, 2021).
3. Of rankers that encode queries apart, the batches give the gradient at the queries' vectors, which goes back through
   the encoder of queries once.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from copy import copy

import torch
from torch import Tensor

from pyterrier_mechir.models.gradients import SHARE, differentiable
from pyterrier_mechir.models.modes import as_alone
from pyterrier_mechir.models.products import packed_products
from pyterrier_mechir.rankers.base import Ranker
from pyterrier_mechir.text.encoding import unique


@as_alone()
def pulled_back(
    ranker: Ranker,
    leaves: Sequence[Tensor],
    queries: Sequence[str],
    texts: Sequence[str],
    weights: Tensor,
    batch_size: int | None = None,
) -> list[Tensor]:
    """The gradient of a weighted sum of scores at tensors that the model computes with.

    Each distinct text is encoded once.

    Args:
        ranker: the ranker, which varies on documents.
        leaves: tensors that require gradients: scales of edits that it is under, or weights of its model.
        queries: the queries, one for each text.
        texts: the texts.
        weights: of the scores, ``[len(texts)]``.
        batch_size: sequences in a forward pass; None takes as many as the memory for a graph allows.

    Returns:
        The gradients, in the shapes of the leaves; zeros where no score depends on one.
    """
    held = copy(ranker)
    held.keeps_graph, held.batch_tokens = True, max(1, ranker.batch_tokens // SHARE)
    sides = [held.opened] if held.reads_query else [held.opened, held.facing("query").opened]
    sums = [torch.zeros_like(leaf) for leaf in leaves]
    with ExitStack() as stack:
        for opened in {id(side.anatomy.model): side for side in sides}.values():
            stack.enter_context(differentiable(opened, leaves))
            stack.enter_context(packed_products(opened.anatomy))
        made = held.query_inputs(unique(queries)[0])
        of_queries = [name for name, value in made.items() if value.requires_grad]
        inputs = {name: value.detach() for name, value in made.items()}
        vectors = [inputs[name].requires_grad_() for name in of_queries]
        of_vectors = [torch.zeros_like(vector) for vector in vectors]
        for shared in held.parts(queries, texts, batch_size=batch_size, inputs=inputs):
            scores = held.compare(held.encode(shared.batch)[shared.places], shared.inputs)
            _add(scores, [*leaves, *vectors], weights[shared.rows].to(scores), [*sums, *of_vectors])
        for name, gradient in zip(of_queries, of_vectors, strict=True):
            _add(made[name], leaves, gradient, sums, is_kept=name != of_queries[-1])
    return sums


def _add(
    outputs: Tensor, inputs: Sequence[Tensor], weights: Tensor, sums: Sequence[Tensor], is_kept: bool = False
) -> None:
    """Add to sums the gradients of a weighted sum of outputs."""
    if not outputs.requires_grad:
        return
    found = torch.autograd.grad(outputs, inputs, weights, retain_graph=is_kept, allow_unused=True)
    for total, gradient in zip(sums, found, strict=True):
        if gradient is not None:
            total += gradient
