"""Module objects of the package's own over the parameters of the caller's model.

A run that is recorded, patched or edited puts functions into modules. The caller's modules are never touched for that,
and runs in several threads must not meet. So what runs is a twin of the model:

1. Each module of the model is copied shallowly: the copy has the same class and the same attributes, and shares the
   very dictionaries of parameters and buffers, so that no weight is copied, and a weight that is replaced is replaced
   for both (weights made in ``torch.inference_mode`` have ordinary tensors over the same memory). Modules, and bound
   methods of modules, that an attribute holds become those of the copies.
2. A twin never trains: dropout is off, whatever mode the model is in. Forward hooks that the caller put into a module
   are its copy's too, as they are a part of what the model computes.
3. Each thread has a twin of its own (:class:`Twins`).
4. Before each call the model is compared, module by module and attribute by attribute, with what the twin was made of.
   Where somebody has replaced a part since (a submodule, an adapter's switch, a hook), the twin is made anew.

What wraps a model without being a part of it (``torch.compile``, ``DataParallel``, PEFT's ``PeftModel``) is taken off
(:func:`unwrapped`); what moves weights about while the model runs is refused.
"""

from __future__ import annotations

import threading
from operator import attrgetter, is_
from types import MethodType
from typing import Any

import torch
from torch import nn

from pyterrier_mechir.models.modes import over_same_memory

_HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
)

_BACKWARD_HOOKS = ("_backward_pre_hooks", "_backward_hooks")

_WRAPPERS = {
    "OptimizedModule": "_orig_mod",
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "PeftModel": "base_model.model",
    "PeftMixedModel": "base_model.model",
}
"""Modules that only pass on to another, by the name of their class, and the attribute that has the other."""

_IN_LAYERS = ("LORA", "ADALORA", "IA3", "LOHA", "LOKR", "OFT", "BOFT", "VERA", "LN_TUNING")
"""The adapters of PEFT that are modules within the layers and change nothing else."""


class Twins:
    """The twins of one model, one for each thread that runs it.

    Args:
        model: the caller's model.

    Attributes:
        edits: what the twins compute under (:class:`~pyterrier_mechir.models.edits.EditedTwins`); nothing here.
    """

    edits: tuple[Any, ...] = ()

    def __init__(self, model: nn.Module):
        self.model = model
        self._of_thread = threading.local()

    def current(self) -> Any:
        """The twin of the running thread, of the model as it is now.

        Raises:
            ValueError: the model is one that cannot be run so (see :func:`twin_of`).
        """
        kept: tuple[Any, list[tuple[Any, ...]]] | None = getattr(self._of_thread, "kept", None)
        if kept is None or not looks_as(self.model, kept[1]):
            kept = self._of_thread.kept = (twin_of(self.model), looks_of(self.model))
        return kept[0]

    def of_model(self, model: nn.Module) -> Twins:
        """The twins of another model, under the same edits if these are edited."""
        return Twins(model)

    @staticmethod
    def of_all_threads(twin: nn.Module) -> Twins:
        """Twins of which all are one that is given, whatever becomes of the model that it was made of."""
        return _Held(twin)

    def __getstate__(self) -> dict[str, Any]:
        return {"model": self.model}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["model"])  # type: ignore[misc]


class _Held(Twins):
    def current(self) -> Any:
        return self.model


def twin_of(model: nn.Module) -> Any:
    """A model with modules of its own, whose parameters and buffers are those of another.

    Raises:
        ValueError: a module is compiled to TorchScript, has weights that are not in memory, or has another ``forward``
            than its class.
    """
    twins: dict[int, nn.Module] = {}
    twin = _made(model, twins)
    for module in list(twins.values()):
        vars(module).update({name: _owned(value, twins) for name, value in vars(module).items()})
    return twin


def unwrapped(model: Any) -> Any:
    """A model without what is wrapped around it: ``torch.compile``, ``DataParallel``, PEFT's ``PeftModel``.

    Raises:
        ValueError: it has an adapter that is not within its layers alone.
    """
    kinds = [kind.__name__ for kind in type(model).__mro__]
    wrapper = next((kind for kind in kinds if kind in _WRAPPERS), None)
    if wrapper is None:
        return model
    config = getattr(model, "active_peft_config", None)
    if config is not None and (config.peft_type not in _IN_LAYERS or getattr(config, "alora_invocation_tokens", None)):
        raise ValueError(
            f"{type(model).__name__} changes more than the layers of its model (its adapter is {config.peft_type!s}), "
            "which is not followed; give a model that it was merged into (model.merge_and_unload()), or one without it."
        )
    return unwrapped(attrgetter(_WRAPPERS[wrapper])(model))


def _made(module: Any, twins: dict[int, nn.Module]) -> nn.Module:
    module = unwrapped(module)
    if id(module) in twins:
        return twins[id(module)]
    _check(module)
    state = dict(vars(module))
    made = twins[id(module)] = object.__new__(type(module))
    state |= {name: state[name].copy() for name in _HOOKS}
    state |= {name: type(state[name])() for name in _BACKWARD_HOOKS}
    state |= {"training": False, "_compiled_call_impl": None}
    for name in ("_parameters", "_buffers"):
        if any(tensor is not None and tensor.is_inference() for tensor in state[name].values()):
            tensors = state[name].items()
            state[name] = {key: None if tensor is None else over_same_memory(tensor) for key, tensor in tensors}
    state["_modules"] = {
        name: child if child is None else _made(child, twins) for name, child in module._modules.items()
    }
    vars(made).update(state)
    return made


def _check(module: nn.Module) -> None:
    kind, own = type(module).__name__, vars(module).get("forward")
    if isinstance(module, torch.jit.ScriptModule):
        raise ValueError(
            f"{kind} is compiled to TorchScript, whose parts cannot be patched; give the model before that."
        )
    if "_hf_hook" in vars(module) or any(
        weight is not None and weight.is_meta for weight in module._parameters.values()
    ):
        raise ValueError(
            f"{kind} has weights that are kept elsewhere while it does not run (accelerate's offloading, "
            "device_map='auto'), which is not followed; load the whole model onto one device, without a device_map."
        )
    if own is not None and not isinstance(own, MethodType) and module._modules:
        raise ValueError(
            f"a {kind} of the model has another forward than its class, {own!r}, which runs modules that cannot be "
            "patched; delete it (del module.forward), or make a subclass of it."
        )


def _owned(value: Any, twins: dict[int, nn.Module]) -> Any:
    """An attribute of a module with twins in the place of modules."""
    if id(value) in twins:
        return twins[id(value)]
    if isinstance(value, MethodType) and id(value.__self__) in twins:
        return MethodType(value.__func__, twins[id(value.__self__)])
    if type(value) in (list, tuple) and any(isinstance(item, nn.Module) for item in value):
        return type(value)(_owned(item, twins) for item in value)
    if type(value) is dict and any(isinstance(item, nn.Module) for item in value.values()):
        return {key: _owned(item, twins) for key, item in value.items()}
    return value


def looks_of(model: nn.Module) -> list[tuple[Any, ...]]:
    """What a twin is made of: of each module its class, its attributes, submodules and hooks."""
    return [
        (
            module,
            type(module),
            *vars(module).values(),
            *module._modules.values(),
            *module._parameters.values(),
            *module._forward_pre_hooks.values(),
            *module._forward_hooks.values(),
        )
        for module in model.modules()
    ]


def looks_as(model: nn.Module, looks: list[tuple[Any, ...]]) -> bool:
    """Whether a model has the very parts that it had."""
    now = looks_of(model)
    return len(now) == len(looks) and all(
        len(one) == len(other) and all(map(is_, one, other)) for one, other in zip(now, looks, strict=True)
    )
