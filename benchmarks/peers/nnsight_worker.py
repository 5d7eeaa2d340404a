"""nnsight on the Hugging Face model, with scaled dot-product attention: one trace a site."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from nnsight import NNsight
from protocol import Answer, Ask, Inputs, Pairs, Site, one_at_a_time, serve, transplanted
from transformers import BertModel

Recorded = dict[tuple[str, int], torch.Tensor]


class Traces:
    """A BERT encoder that nnsight wraps."""

    def __init__(self, pairs: Pairs):
        model = BertModel.from_pretrained(pairs.directory, add_pooling_layer=False, attn_implementation="sdpa").eval()
        self.model = NNsight(model)
        self.d_head = pairs.d_head

    def encode(self, inputs: Inputs) -> torch.Tensor:
        with self.model.trace(**inputs):
            states = self.model.output[0].save()
        return states

    def record(self, inputs: Inputs, components: Sequence[str]) -> Recorded:
        layers = self.model.encoder.layer
        with self.model.trace(**inputs):
            recorded = {}.save()
            for layer in range(len(layers)):
                for component in components:
                    recorded[component, layer] = getattr(*self._place(component, layer))
        return recorded

    def patched(self, inputs: Inputs, site: Site, recorded: Recorded) -> torch.Tensor:
        envoy, end = self._place(site.component, site.layer)
        other = recorded[site.component, site.layer]
        with self.model.trace(**inputs):
            setattr(envoy, end, transplanted(getattr(envoy, end), other, site, self.d_head))
            states = self.model.output[0].save()
        return states

    def _place(self, component: str, layer: int) -> tuple[Any, str]:
        """Which module's input or output an activation is; nnsight calls modules that are named output E_output."""
        block = self.model.encoder.layer[layer]
        return {
            "head": (block.attention.E_output.dense, "input"),
            "resid_pre": (block, "input"),
            "attn_out": (block.attention.E_output.dense, "output"),
            "mlp_out": (block.E_output.dense, "output"),
        }[component]


def load(pairs: Pairs) -> Callable[[Ask], Answer]:
    encoder = Traces(pairs)
    return lambda ask: one_at_a_time(encoder, pairs, ask)


if __name__ == "__main__":
    serve(load, "nnsight")
