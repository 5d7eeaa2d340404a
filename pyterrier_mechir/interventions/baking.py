"""Edits in weights: a model that computes by itself what a ranker computes under its edits.

An edit of a site makes ``g x + c`` of what passes there, at every position alike, and that is in the weights of the
module that reads or makes x:

- what a linear map reads (heads, neurons): its columns times g, its bias plus the map of c;
- what a linear map, a norm or an embedding gives (outputs, queries, keys, values, the streams of post-norm models): its
  rows, or its weight, times g; its bias times g plus c;
- what a map adds to the stream of a pre-norm model, or that stream itself: its bias plus c; nothing scales the sum.

All is computed in float64 of the weights as they were, in the order in which the model computes, and rounded once, so
that what an edit does not change stays as it is to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pyterrier_mechir.interventions.edits import SiteEdit
from pyterrier_mechir.models.anatomy import Anatomy
from pyterrier_mechir.models.edits import Affine
from pyterrier_mechir.models.modes import as_alone
from pyterrier_mechir.models.precision import Reduced
from pyterrier_mechir.models.recording import Key
from pyterrier_mechir.rankers.base import Ranker
from pyterrier_mechir.rankers.running import Tower

_IN_ORDER = (
    *("embed", "resid_pre", "q", "k", "v", "z", "attn_out", "resid_mid"),
    *("cross_q", "cross_k", "cross_v", "cross_z", "cross_attn_out", "mlp_post", "mlp_out", "resid_post"),
)
"""The activations of a layer, in the order in which it computes them."""


@as_alone()
@torch.no_grad()
def bake(ranker: Ranker) -> Any:
    """A model with a ranker's edits in its weights; see
    :meth:`~pyterrier_mechir.rankers.interactive.Interactive.bake`."""
    towers = ranker.towers()
    if len(towers) > 1:
        raise ValueError(
            f"{ranker!r} encodes queries otherwise than documents, and a model is one encoder for both; edit both "
            "sides alike, or, of a bi-encoder, save_pretrained(directory) writes both as a Router."
        )
    return baked(ranker, "both", towers["both"])


@as_alone()
@torch.no_grad()
def baked(ranker: Ranker, side: str, tower: Tower) -> Any:
    """A model of the class of a tower's, with weights of its own that have the tower's edits in them.

    Args:
        ranker: whose tower it is.
        side: what it encodes.
        tower: the model, and what it runs under.

    Raises:
        ValueError: an edit that weights cannot hold, or a model whose weights are not its own to write.
    """
    _check(ranker, tower.model)
    model = deepcopy(tower.model).eval()
    told = [edit for of, edit in ranker.edits if of in ("both", side)]
    for edit in told:
        if not isinstance(edit, SiteEdit):
            raise _varies(repr(edit))
    names = [repr(edit) for edit in told]
    if len(names) != len(tower.edits):
        names = [f"the edit of {edit.key[1]} in layer {edit.key[0]}" for edit in tower.edits]
    for decoder in (False, True):
        of_stack = [(edit, name) for edit, name in zip(tower.edits, names, strict=True) if edit.decoder == decoder]
        if of_stack:
            _bake_stack(Anatomy(model, decoder=decoder), _sums(of_stack))
    return model


def _check(ranker: Ranker, model: nn.Module) -> None:
    if getattr(ranker, "_query_encoder", None) is not None:
        raise ValueError(
            f"{ranker!r} has another model for queries (query_model=), which makes two checkpoints; edit Splade(model) "
            "and Splade(query_model) apart and save both, and give them to Splade(saved, query_model=other_saved)."
        )
    for module in model.modules():
        if isinstance(module, Reduced):
            raise ValueError(
                f"{ranker!r} multiplies in {ranker.dtype}, for which its weights were rounded; make the ranker with "
                "dtype='float32', edit that, and save it."
            )
        if type(module).__module__.partition(".")[0] == "peft":
            raise ValueError(
                f"{ranker!r} has an adapter of PEFT in its layers ({type(module).__name__}), beside the weights that "
                "would be written; merge it (model.merge_and_unload()), and make the ranker of what that gives."
            )


@dataclass
class _Sum:
    """All edits of one activation as one: ``scale * x + shift``, of all its features, in float64.

    Args:
        key: the (layer, activation).
        scale: ``[D]``.
        shift: ``[D]``.
        scaled_by: the first edit that scales, for messages.
        shifted_by: the first that shifts.
    """

    key: Key
    scale: Tensor
    shift: Tensor
    scaled_by: str = ""
    shifted_by: str = ""

    def add(self, edit: Affine, name: str) -> None:
        columns, scale = edit.columns, torch.as_tensor(edit.scale, dtype=torch.float64, device="cpu")
        shift = torch.zeros(()) if edit.shift is None else edit.shift.detach().cpu()
        self.scale[columns] *= scale
        self.shift[columns] = self.shift[columns] * scale + shift.double()
        if (scale != 1).any():
            self.scaled_by = self.scaled_by or name
        if shift.any():
            self.shifted_by = self.shifted_by or name

    @property
    def scales(self) -> bool:
        return bool((self.scale != 1).any())

    @property
    def shifts(self) -> bool:
        return bool(self.shift.any())


def _sums(edits: Sequence[tuple[Any, str]]) -> dict[Key, list[tuple[Any, str]]]:
    found: dict[Key, list[tuple[Any, str]]] = {}
    for edit, name in edits:
        if not isinstance(edit, Affine):
            raise _varies(name)
        found.setdefault(edit.key, []).append((edit, name))
    return dict(sorted(found.items(), key=lambda item: (item[0][0], _IN_ORDER.index(item[0][1]))))


def _varies(edit: str) -> ValueError:
    return ValueError(
        f"{edit} cannot be in weights, as what it puts there differs from text to text or from position to position; "
        "ablate by zero, or by a mean over all positions, or keep the edited ranker."
    )


def _bake_stack(anatomy: Anatomy, edits: dict[Key, list[tuple[Any, str]]]) -> None:
    maps = _Maps(anatomy)
    for (layer, activation), of_key in edits.items():
        width = anatomy.width(activation)
        one, nought = torch.ones(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
        made = _Sum((layer, activation), one, nought)
        for edit, name in of_key:
            made.add(edit, name)
        if made.scales or made.shifts:
            maps.change(made)
    maps.write()


@dataclass
class _Weights:
    """The weights of a module, as they become: float64."""

    weight: Tensor
    bias: Tensor | None


@dataclass
class _Maps:
    """The modules of a model whose weights change.

    Args:
        anatomy: the parts of one of its stacks.
    """

    anatomy: Anatomy
    found: dict[nn.Module, _Weights] = field(default_factory=dict)

    def change(self, edit: _Sum) -> None:
        """Let the weights hold an edit; of one module, edits come in the order in which the model computes."""
        layer, activation = edit.key
        streams = ("resid_pre", "resid_mid", "resid_post")
        port = None if activation in streams else self.anatomy.port(layer, activation)
        if port is not None and port.is_input:
            weights = self._of(port.module, edit)
            if edit.shifts:
                self._bias(port.module, edit).add_(weights.weight @ edit.shift)
            weights.weight *= edit.scale
            return
        module, is_whole = self.anatomy.writer(layer, activation)
        if edit.scales and not is_whole:
            raise self._cannot(
                edit.scaled_by,
                "the stream of its model is a sum that is normed later, so that no weight scales it",
                "scale what is added to it (attn_out, mlp_out)",
            )
        weights = self._of(module, edit)
        rows = slice(None) if port is None or port.columns is None else port.columns
        if edit.scales:
            self._scale(module, weights, rows, edit.scale)
        if edit.shifts and isinstance(module, nn.Embedding):
            weights.weight += edit.shift / _factor(module)
        elif edit.shifts:
            self._bias(module, edit)[rows] += edit.shift

    def _scale(self, module: nn.Module, weights: _Weights, rows: slice, scale: Tensor) -> None:
        if isinstance(module, nn.Linear):
            weights.weight[rows] *= scale.unsqueeze(1)
        else:
            weights.weight *= scale
        if weights.bias is not None:
            weights.bias[rows] *= scale

    def _of(self, module: nn.Module, edit: _Sum) -> _Weights:
        if module not in self.found:
            is_known = isinstance(module, (nn.LayerNorm, nn.Linear, nn.Embedding)) and module.weight is not None
            if not is_known and (edit.scales or not type(module).__name__.endswith("RMSNorm")):
                raise self._cannot(
                    edit.scaled_by or edit.shifted_by,
                    f"{self._path(module)} is a {type(module).__name__}, whose weights are not known here",
                    "",
                )
            if isinstance(module, nn.Embedding):
                self._untie(module, edit)
            weight: Any = module.weight
            bias: Any = getattr(module, "bias", None)
            kept = (None if of is None else of.detach().cpu().double().clone() for of in (weight, bias))
            self.found[module] = _Weights(*kept)  # type: ignore[arg-type]
        return self.found[module]

    def _bias(self, module: nn.Module, edit: _Sum) -> Tensor:
        """The bias of a module, which it is given where its config has a switch for it."""
        weights = self.found[module]
        if weights.bias is None:
            if getattr(module, "bias", None) is None:
                self._switch_on(module, edit)
            weights.bias = module.bias.detach().cpu().double().clone()  # type: ignore[operator]
        return weights.bias

    def _switch_on(self, module: nn.Module, edit: _Sum) -> None:
        model, path = self.anatomy.model, self._path(module)
        for switch in self.anatomy.architecture.bias_switches:
            config = deepcopy(model.config)
            if not hasattr(config, switch) or getattr(config, switch):
                continue
            setattr(config, switch, True)
            with torch.device("meta"):
                named = dict(type(model)(config).named_parameters())
            if f"{path}.bias" not in named:
                continue
            for name in sorted(named.keys() - dict(model.named_parameters()).keys()):
                owner: Any = model.get_submodule(name.removesuffix(".bias"))
                owner.bias = nn.Parameter(owner.weight.new_zeros(named[name].shape))
            setattr(model.config, switch, True)
            return
        raise self._cannot(
            edit.shifted_by,
            f"it adds a constant, and {path} has no bias, nor has the config of {type(model).__name__} a switch that "
            "gives it one",
            "scale a head or an output, or ablate it by zero",
        )

    def _untie(self, module: nn.Module, edit: _Sum) -> None:
        """Give the word embeddings a table of their own, where the head over the vocabulary has the same one."""
        model: Any = self.anatomy.model
        table: Any = module.weight
        output = model.get_output_embeddings()
        sharing = [
            other for other in model.modules() if other is not module and other._parameters.get("weight") is table
        ]
        if any(other is not output for other in sharing) and model.config.is_encoder_decoder:
            raise self._cannot(
                edit.scaled_by or edit.shifted_by,
                f"{type(model).__name__} has one table of word embeddings for its encoder and its decoder",
                "edit a later site",
            )
        if output is not None and output in sharing:
            for name, tied in list(output.named_parameters(recurse=False)):
                setattr(output, name, nn.Parameter(tied.detach().clone(), requires_grad=tied.requires_grad))
            model.config.tie_word_embeddings = False

    def write(self) -> None:
        """Round the weights to the precision of the model and put them into it."""
        for module, weights in self.found.items():
            for name in ("weight", "bias"):
                value, own = getattr(weights, name), getattr(module, name, None)
                if value is not None and own is not None:
                    own.data.copy_(value)

    def _path(self, module: nn.Module) -> str:
        return next(name for name, other in self.anatomy.model.named_modules() if other is module)

    def _cannot(self, edit: str, reason: str, instead: str) -> ValueError:
        instead = f"{instead}, or keep the edited ranker" if instead else "keep the edited ranker"
        return ValueError(f"{edit} cannot be in weights: {reason}; {instead}.")


def _factor(module: nn.Module) -> float:
    """What a module of word embeddings multiplies its rows by."""
    return float(getattr(module, "embed_scale", 1.0))
