"""PyTorch hooks on the Hugging Face model, with scaled dot-product attention: one hook and one forward pass a site."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from protocol import Answer, Ask, Inputs, Pairs, Site, one_at_a_time, serve, transplanted
from torch.utils.hooks import RemovableHandle
from transformers import BertModel

Recorded = dict[tuple[str, int], torch.Tensor]


class Hooks:
    """A BERT encoder under hooks."""

    def __init__(self, pairs: Pairs):
        self.model = BertModel.from_pretrained(
            pairs.directory, add_pooling_layer=False, attn_implementation="sdpa"
        ).eval()
        self.d_head = pairs.d_head

    def encode(self, inputs: Inputs) -> torch.Tensor:
        return self.model(**inputs).last_hidden_state

    def record(self, inputs: Inputs, components: Sequence[str]) -> Recorded:
        recorded: Recorded = {}
        handles = [
            self._hook(component, layer, partial(recorded.__setitem__, (component, layer)))
            for component in components
            for layer in range(len(self.model.encoder.layer))
        ]
        self.encode(inputs)
        for handle in handles:
            handle.remove()
        return recorded

    def patched(self, inputs: Inputs, site: Site, recorded: Recorded) -> torch.Tensor:
        other = recorded[site.component, site.layer]

        def patch(own: torch.Tensor) -> torch.Tensor:
            return transplanted(own, other, site, self.d_head)

        with self._hook(site.component, site.layer, patch):
            return self.encode(inputs)

    def _hook(
        self, component: str, layer: int, change: Callable[[torch.Tensor], torch.Tensor | None]
    ) -> RemovableHandle:
        """Call a function with an activation, and take what it returns in its place, unless that is None."""
        block = self.model.encoder.layer[layer]
        module, is_input = {
            "head": (block.attention.output.dense, True),
            "resid_pre": (block, True),
            "attn_out": (block.attention.output.dense, False),
            "mlp_out": (block.output.dense, False),
        }[component]
        if not is_input:
            return module.register_forward_hook(lambda module, args, output: change(output))

        def before(module, args):
            made = change(args[0])
            return None if made is None else (made, *args[1:])

        return module.register_forward_pre_hook(before)


def load(pairs: Pairs) -> Callable[[Ask], Answer]:
    encoder = Hooks(pairs)
    return lambda ask: one_at_a_time(encoder, pairs, ask)


if __name__ == "__main__":
    serve(load)
