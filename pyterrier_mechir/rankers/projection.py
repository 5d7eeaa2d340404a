"""What becomes of a pooled vector before it is compared: linear maps, norms and cuts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from pyterrier_mechir.rankers.declared import Part

Weights = Mapping[str, Tensor]

_SENTENCE = "sentence_embedding"
"""What sentence-transformers calls the vector of a text."""

_OF_DENSE = {"linear.weight", "linear.bias", "residual.weight"}


@dataclass(frozen=True, eq=False)
class Step:
    """One step, from vectors ``[B, d]`` to vectors.

    Args:
        kind: what it is.
        apply: makes vectors of vectors and the weights.
        weights: gives the weights as they are at the moment.
    """

    kind: str
    apply: Callable[[Tensor, Weights], Tensor]
    weights: Callable[[], Weights] = dict

    def __str__(self) -> str:
        settings = self.apply.keywords if isinstance(self.apply, partial) else {}
        return f"{self.kind}({', '.join(f'{name}={value}' for name, value in settings.items())})"

    def __call__(self, vectors: Tensor) -> Tensor:
        return self.apply(vectors, {name: weight.detach().to(vectors) for name, weight in self.weights().items()})


def read_step(part: Part) -> Step:
    """A Dense, LayerNorm or Normalize module of sentence-transformers.

    Raises:
        ValueError: it does more than what is computed here.
    """
    told, weights, known = part.settings, part.weights(), set()
    apply: Callable[[Tensor, Weights], Tensor] = _normalised
    told.only("module_input_name", _SENTENCE)
    told.only("module_output_name", _SENTENCE)
    told.skip("in_features", "out_features", "bias", "dimension")
    if part.kind == "Dense":
        known = _OF_DENSE
        apply = partial(_dense, activation=_activation(part), residual=bool(told.take("use_residual")))
    elif part.kind == "LayerNorm":
        known = {"norm.weight", "norm.bias"}
        apply = partial(_layer_norm, eps=1e-5 if part.module is None else part.module.norm.eps)
    if known and not weights:
        raise ValueError(f"{told.where} has no weights; its checkpoint is not whole.")
    if weights.keys() - known:
        told.fail(f"has weights {', '.join(sorted(weights.keys() - known))}")
    told.end()
    return Step(part.kind, apply, partial(dict, weights) if part.module is None else part.module.state_dict)


def cut_to(dim: int) -> Step:
    """The step that leaves the first dimensions of vectors."""
    return Step("Truncate", partial(_cut, dim=dim))


def _activation(part: Part) -> nn.Module:
    """The activation function of a Dense module, itself where it is loaded."""
    path = str(part.settings.take("activation_function") or "torch.nn.modules.activation.Tanh")
    kind = getattr(nn, path.rsplit(".", 1)[-1], None) if path.startswith("torch.") else None
    if part.module is not None and type(part.module.activation_function) is not kind:
        kind = None
    if kind is None or kind.__module__ not in (nn.Tanh.__module__, nn.Identity.__module__):
        part.settings.refuse("activation_function", path)
    made: nn.Module = kind() if part.module is None else copy(part.module.activation_function)
    return made.eval()


def _dense(vectors: Tensor, weights: Weights, activation: nn.Module, residual: bool) -> Tensor:
    made: Any = activation(functional.linear(vectors, weights["linear.weight"], weights.get("linear.bias")))
    if not residual:
        return made
    return made + (functional.linear(vectors, weights["residual.weight"]) if "residual.weight" in weights else vectors)


def _layer_norm(vectors: Tensor, weights: Weights, eps: float) -> Tensor:
    return functional.layer_norm(vectors, vectors.shape[-1:], weights["norm.weight"], weights["norm.bias"], eps)


def _normalised(vectors: Tensor, weights: Weights) -> Tensor:
    return functional.normalize(vectors, dim=-1)


def _cut(vectors: Tensor, weights: Weights, dim: int) -> Tensor:
    return vectors[..., :dim]
