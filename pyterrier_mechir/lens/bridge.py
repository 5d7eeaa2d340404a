"""A TransformerLens bridge on the weights of a ranker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy, deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformer_lens import ActivationCache
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources import build_bridge_config_from_hf, detect_tokenizer_bos_eos
from transformers import PreTrainedConfig

from pyterrier_mechir.lens.adapter import RankerAdapter, register
from pyterrier_mechir.models.modes import as_alone
from pyterrier_mechir.models.twins import Twins, twin_of

if TYPE_CHECKING:
    from pyterrier_mechir.models.opened import Batch
    from pyterrier_mechir.rankers.interactive import Interactive

Hook = tuple[str | Callable[[str], bool], Callable[..., Tensor | None]]
"""A hook point, or a function that is true for the names of some, and what is called with the activation there."""

NamesFilter = str | list[str] | Callable[[str], bool] | None
"""Which hook points are meant: one, some, those for which a function of the name is true, or all."""


class Lens(TransformerBridge):
    """A bridge on the weights of a ranker.

    TransformerLens rebuilds the model that it is given. Here that is one whose modules are copies and whose weights are
    the ranker's own, so that the ranker stays as it is, and a weight that is changed in place changes for both.

    Args:
        ranker: the ranker.

    Attributes:
        ranker: a ranker of the same settings whose model is the bridge's, so that its hooks see what it scores.
    """

    ranker: Interactive

    @as_alone()
    def __init__(self, ranker: Interactive):
        register()
        twin = _twin(ranker)
        model: Any = twin.model
        cfg = build_bridge_config_from_hf(model.config, type(model).__name__, ranker.name, model.dtype)
        cfg.device = str(ranker.device)
        cfg.tokenizer_prepends_bos, _ = detect_tokenizer_bos_eos(ranker.tokenizer)
        cfg.tokenizer_appends_eos = False
        cfg.n_ctx = ranker.max_length
        adapter = RankerAdapter(cfg)
        adapter.anatomy = twin.anatomy
        adapter.prepare_model(model)
        super().__init__(model, adapter, ranker.tokenizer)
        self.ranker = twin
        twin.keep_lens(self)

    def _accepts_derived_position_ids(self) -> bool:
        """Positions are the model's own, though a mask has gaps."""
        return False

    def _setup_start_at_layer(self, input: Any, start_at_layer: int) -> Tensor:
        """Stand-ins for the tokens, as embeddings may be narrower than the stream; the layers before are left out."""
        residual = super()._setup_start_at_layer(input, start_at_layer)
        return torch.zeros(residual.shape[:2], dtype=torch.long, device=residual.device)


def _twin(ranker: Interactive) -> Interactive:
    """A copy of a ranker with modules and settings of its own, which can be rebuilt; weights are shared."""
    twin, model, copied = copy(ranker), twin_of(ranker.model), dict[int, Any]()
    for module in model.modules():
        configs = {name: value for name, value in vars(module).items() if isinstance(value, PreTrainedConfig)}
        vars(module).update({name: deepcopy(config, copied) for name, config in configs.items()})
        vars(module).update(_parameters=dict(module._parameters), _buffers=dict(module._buffers))
    twin.model, twin.anatomy, twin._twins = model, ranker.anatomy.of(model), Twins.of_all_threads(model)
    return twin


@as_alone()
def run_with_hooks(
    ranker: Interactive, queries: str | Sequence[str], texts: str | Sequence[str], fwd_hooks: Sequence[Hook]
) -> Tensor:
    """Scores ``[len(texts)]`` of a ranker with functions at hook points.

    See :meth:`~pyterrier_mechir.rankers.interactive.Interactive.run_with_hooks`.
    """
    ranker = ranker.facing("document")
    batch = _batch(ranker, queries, texts)
    with ranker.lens.hooks(fwd_hooks=list(fwd_hooks)):
        return ranker.lens.ranker.forward(batch)


@as_alone()
def run_with_cache(
    ranker: Interactive,
    queries: str | Sequence[str],
    texts: str | Sequence[str],
    names_filter: NamesFilter = None,
    device: str | torch.device | None = None,
) -> tuple[Tensor, ActivationCache]:
    """Scores ``[len(texts)]`` of a ranker and its activations.

    See :meth:`~pyterrier_mechir.rankers.interactive.Interactive.run_with_cache`.
    """
    ranker = ranker.facing("document")
    lens = ranker.lens
    asked = [names_filter] if isinstance(names_filter, str) else names_filter
    if isinstance(asked, list):
        unknown = [name for name in asked if name not in lens.hook_dict]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is no hook point of {ranker!r}; ranker.hook_dict has them all.")
    cache, hooks, _ = lens.get_caching_hooks((lambda name: True) if asked is None else asked, device=device)
    scores = run_with_hooks(ranker, queries, texts, hooks)
    return scores, ActivationCache(cache, lens)


def _batch(ranker: Interactive, queries: str | Sequence[str], texts: str | Sequence[str]) -> Batch:
    """The inputs of all pairs in one batch, in their order."""
    texts = [texts] if isinstance(texts, str) else list(texts)
    queries = [queries] * len(texts) if isinstance(queries, str) else list(queries)
    if not texts or len(queries) != len(texts):
        raise ValueError(
            f"{len(queries)} queries and {len(texts)} texts are no pairs; give a query and a text, or as many of both."
        )
    (shared,) = ranker.parts(queries, texts, batch_size=len(texts))
    order = np.argsort(shared.rows)
    return {name: value[order] for name, value in shared.inputs.items()}
