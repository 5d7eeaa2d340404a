"""TransformerLens' bridge, with this package's adapter for BERT encoders: one ``run_with_hooks`` a site."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from protocol import Answer, Ask, Inputs, Pairs, Site, one_at_a_time, serve
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformers import BertModel

HOOKS = {
    "head": "blocks.{}.attn.hook_z",
    "resid_pre": "blocks.{}.hook_resid_pre",
    "attn_out": "blocks.{}.hook_attn_out",
    "mlp_out": "blocks.{}.hook_mlp_out",
}


class Bridge:
    """A bridge on a BERT encoder."""

    def __init__(self, pairs: Pairs):
        model = BertModel.from_pretrained(pairs.directory, add_pooling_layer=False, attn_implementation="eager").eval()
        self.bridge = build_bridge_from_module(model, "BertModel", hf_config=model.config)
        self.n_layers = pairs.n_layers

    def encode(self, inputs: Inputs) -> torch.Tensor:
        return _states(self.bridge(inputs["input_ids"], attention_mask=inputs["attention_mask"]))

    def record(self, inputs: Inputs, components: Sequence[str]) -> Any:
        names = [HOOKS[component].format(layer) for component in components for layer in range(self.n_layers)]
        mask = inputs["attention_mask"]
        return self.bridge.run_with_cache(inputs["input_ids"], attention_mask=mask, names_filter=names)[1]

    def patched(self, inputs: Inputs, site: Site, recorded: Any) -> torch.Tensor:
        def patch(value, hook):
            here = (slice(None), slice(None), site.number) if site.component == "head" else (slice(None), site.number)
            value[here] = recorded[hook.name][here]
            return value

        hooks = [(HOOKS[site.component].format(site.layer), patch)]
        mask = inputs["attention_mask"]
        return _states(self.bridge.run_with_hooks(inputs["input_ids"], attention_mask=mask, fwd_hooks=hooks))


def _states(output: Any) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output[0]


def load(pairs: Pairs) -> Callable[[Ask], Answer]:
    encoder = Bridge(pairs)
    return lambda ask: one_at_a_time(encoder, pairs, ask)


if __name__ == "__main__":
    serve(load, "transformer-lens")
