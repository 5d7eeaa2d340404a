"""The score as a sum over what is written to the residual stream, by the direct path with frozen norms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from pyterrier_mechir.models.modes import as_alone
from pyterrier_mechir.models.precision import precision_of
from pyterrier_mechir.models.recording import Recording, record
from pyterrier_mechir.models.sites import Site
from pyterrier_mechir.rankers.bi_encoder import BiEncoder

if TYPE_CHECKING:
    from pyterrier_mechir.models.anatomy import Anatomy
    from pyterrier_mechir.rankers.base import Ranker
    from pyterrier_mechir.rankers.batches import SharedBatch


BY = ("head", "component")

_DRIFT = 1e4
"""How many roundings the terms may be off the score, relative to the sum of their sizes, before this is an error."""


def check_direct_path(ranker: Ranker) -> BiEncoder:
    """Check that a ranker's score is a sum over what is written to its residual stream.

    Raises:
        ValueError: its scoring end is not linear, or its norms are not known or not of a known kind.
    """
    if not isinstance(ranker, BiEncoder):
        raise ValueError(
            f"the score of {ranker!r} is no sum over what is written to its residual stream: between the last layer "
            "and the score is a head with a nonlinearity (tanh, relu or gelu). ScoreAttribution takes a BiEncoder; use "
            "ScoreLens or PatchScorer instead."
        )
    if ranker.projection is not None:
        raise ValueError(
            f"{ranker!r} projects its pooled vectors, which ScoreAttribution does not follow; use ScoreLens or "
            "PatchScorer instead."
        )
    if ranker.similarity not in ("dot", "cosine"):
        raise ValueError(
            f"{ranker!r} compares by {ranker.similarity} distance, which is no sum over what is written to its "
            "residual stream; use ScoreLens or PatchScorer instead."
        )
    for step in ranker.anatomy.direct_path():
        if isinstance(step, nn.Module):
            _is_centred(step)
    return ranker


def term_names(ranker: Ranker, by: str) -> list[str]:
    """The names of the terms of a score, in their order.

    Args:
        ranker: the model.
        by: ``head`` or ``component``.
    """
    names = ["embed"]
    for layer in range(ranker.n_layers):
        if by == "head":
            names += [Site("head", layer, head).name for head in range(ranker.n_heads)]
        else:
            names.append(Site("attn_out", layer).name)
        names.append(Site("mlp_out", layer).name)
    return [*names, "bias"]


@as_alone()
def score_terms(
    ranker: BiEncoder,
    queries: Sequence[str],
    texts: Sequence[str],
    *,
    by: str,
    batch_size: int | None = None,
    verbose: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of (query, text) pairs and the terms that they are sums of, each distinct text run once.

    Args:
        ranker: a ranker that :func:`check_direct_path` accepts.
        queries: the queries, one for each text.
        texts: the texts.
        by: ``head`` or ``component``.
        batch_size: texts in a forward pass; None batches by length.
        verbose: show a progress bar.

    Returns:
        scores, float32 ``[N]``, and terms, float32 ``[N, term]``, in the order of :func:`term_names`.

    Raises:
        ValueError: the terms do not sum to the scores, because the model is not what its row in the table of
            architectures says.
    """
    scores = np.empty(len(texts), dtype=np.float32)
    terms = np.empty((len(texts), len(term_names(ranker, by))), dtype=np.float32)
    opened = ranker.opened
    path = opened.anatomy.direct_path()
    wanted = [step for step in path if isinstance(step, tuple)]
    with torch.no_grad():
        for shared in ranker.parts(queries, texts, batch_size=batch_size, verbose=verbose):
            run = record(opened.encoding, shared.batch, wanted)
            of_rows = ranker.compare(run.scores[shared.places], shared.inputs)
            found = _terms(ranker, opened.anatomy, path, shared, run, by)
            _check_sum(ranker, found, of_rows)
            scores[shared.rows], terms[shared.rows] = of_rows.cpu().numpy(), found.cpu().numpy()
    return scores, terms


@dataclass(frozen=True)
class _FrozenNorm:
    """A norm with the scale of one run, a linear map plus a constant: ``gain * (x - mean(x)) / sigma + shift``.

    Args:
        gain: ``[d]``.
        shift: ``[d]``.
        scale: 1 / sigma of each of ``P`` positions, ``[P, 1]``.
        is_centred: whether the mean over features is taken away, as by LayerNorm and not by RMSNorm.
    """

    gain: Tensor
    shift: Tensor
    scale: Tensor
    is_centred: bool

    @classmethod
    def of(cls, norm: nn.Module, stream: Tensor) -> _FrozenNorm:
        """The norm with the scale that it has on a stream ``[P, d]``."""
        is_centred = _is_centred(norm)
        spread = stream - stream.mean(-1, keepdim=True) if is_centred else stream
        eps = getattr(norm, "eps", None) or torch.finfo(stream.dtype).eps
        scale = (spread.square().mean(-1, keepdim=True) + eps).rsqrt()
        ones = torch.ones_like(stream[0])
        gain, shift = getattr(norm, "weight", None), getattr(norm, "bias", None)
        return cls(
            ones if gain is None else gain.to(stream.dtype),
            torch.zeros_like(ones) if shift is None else shift.to(stream.dtype),
            scale,
            is_centred,
        )

    def __call__(self, stream: Tensor) -> Tensor:
        return self._centred(stream) * self.scale * self.gain + self.shift

    def pull(self, gradient: Tensor) -> Tensor:
        """The gradient with respect to what enters, given that with respect to what leaves; both ``[P, d]``."""
        return self._centred(gradient * self.gain) * self.scale

    def _centred(self, value: Tensor) -> Tensor:
        return value - value.mean(-1, keepdim=True) if self.is_centred else value


def _is_centred(norm: nn.Module) -> bool:
    """Whether a norm takes the mean away.

    Raises:
        ValueError: it is neither a LayerNorm nor an RMSNorm.
    """
    if not isinstance(norm, (nn.LayerNorm, nn.RMSNorm)):
        raise ValueError(
            f"a norm of the model is a {type(norm).__name__}; scores are attributed through LayerNorm and RMSNorm of "
            "torch.nn only. Use ScoreLens or PatchScorer instead."
        )
    return isinstance(norm, nn.LayerNorm)


def _terms(
    ranker: BiEncoder,
    anatomy: Anatomy,
    path: Sequence[tuple[int, str] | nn.Module],
    shared: SharedBatch,
    run: Recording,
    by: str,
) -> Tensor:
    """The terms of the rows of a batch, ``[R, term]``; as many rows at a time as the batch has tokens for."""
    weights = ranker.pooling_weights(shared.batch["attention_mask"])
    places = torch.tensor(shared.places, device=weights.device)
    at_once = max(1, ranker.batch_tokens // weights.shape[1])
    chunks = zip(places.split(at_once), shared.inputs["query_vector"].split(at_once), strict=True)
    return torch.cat([_terms_of_rows(ranker, anatomy, path, run, weights, *chunk, by) for chunk in chunks])


def _terms_of_rows(
    ranker: BiEncoder,
    anatomy: Anatomy,
    path: Sequence[tuple[int, str] | nn.Module],
    run: Recording,
    weights: Tensor,
    places: Tensor,
    queries: Tensor,
    by: str,
) -> Tensor:
    """The terms of ``R`` rows.

    The stream is put together again from what is written to it, at the ``P`` pooled positions of all rows one after the
    other. Then the gradient of the score is carried back along it: nothing is on the way but norms, whose scales are
    those of the run, so that each term is a writer's output times the gradient at its place.

    Args:
        path: what is written to the stream, and its norms.
        run: the recorded activations of ``B`` texts.
        weights: what their positions weigh in the pooled vectors, ``[B, S]``.
        places: the text of each row, ``[R]``.
        queries: the query vector of each row, ``[R, d]``.
    """
    row, position = weights[places].nonzero(as_tuple=True)
    text = places[row]
    weight = weights[text, position].unsqueeze(-1)
    stream = torch.zeros_like(queries[row])
    passed: list[tuple[Tensor, nn.Module | None] | _FrozenNorm] = []
    for step in path:
        if isinstance(step, nn.Module):
            norm = _FrozenNorm.of(step, stream)
            stream = norm(stream)
            passed.append(norm)
            continue
        value = run[step][text, position].to(stream.dtype)
        out_proj = anatomy.out_proj(step[0]) if step[1] == "z" else None
        written = value if out_proj is None else _project(out_proj, value)
        stream = stream + written
        passed.append((written if by == "component" else value, out_proj if by == "head" else None))
    direction = queries
    if ranker.similarity == "cosine":
        pooled = torch.zeros_like(queries).index_add_(0, row, weight * stream)
        direction = queries / pooled.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    gradient = weight * direction[row]
    bias = torch.zeros_like(weight)
    terms: list[Tensor] = []
    for step_back in reversed(passed):
        if isinstance(step_back, _FrozenNorm):
            bias += (gradient * step_back.shift).sum(-1, keepdim=True)
            gradient = step_back.pull(gradient)
            continue
        value, out_proj = step_back
        if out_proj is None:
            terms.append((gradient * value).sum(-1, keepdim=True))
            continue
        pulled = gradient @ _float(out_proj.weight, gradient)
        terms.append((pulled * value).unflatten(-1, (anatomy.n_heads, -1)).sum(-1))
        if out_proj.bias is not None:
            bias += (gradient @ _float(out_proj.bias, gradient)).unsqueeze(-1)
    of_positions = torch.cat([*reversed(terms), bias], dim=-1)
    return of_positions.new_zeros((len(places), of_positions.shape[1])).index_add_(0, row, of_positions)


def _project(linear: nn.Module, value: Tensor) -> Tensor:
    bias = None if linear.bias is None else _float(linear.bias, value)
    return nn.functional.linear(value, _float(linear.weight, value), bias)


def _float(parameter: Tensor | nn.Module, like: Tensor) -> Tensor:
    return parameter.to(like.dtype)  # type: ignore[return-value]


def _check_sum(ranker: Ranker, terms: Tensor, scores: Tensor) -> None:
    """Check that terms ``[R, term]`` sum to the scores ``[R]``.

    Raises:
        ValueError: they do not.
    """
    sums, size = terms.sum(1), terms.abs().sum(1)
    rounding = max(torch.finfo(dtype).eps for dtype in (precision_of(ranker.model), terms.dtype))
    off = (sums - scores).abs() > _DRIFT * rounding * size
    if off.any():
        at = int(off.nonzero()[0, 0])
        raise ValueError(
            f"the terms of a score of {ranker!r} sum to {sums[at]:.6g}, not to {scores[at]:.6g}: the row of "
            f"{ranker.model.config.model_type!r} in ARCHITECTURES does not describe all that is written to its "
            "residual stream. Use ScoreLens or PatchScorer instead."
        )
