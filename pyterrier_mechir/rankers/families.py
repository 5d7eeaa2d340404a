"""Which kinds of rankers there are, over which architectures, and what can be patched in each."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyterrier_mechir.models.anatomy import Anatomy
from pyterrier_mechir.models.architectures import ARCHITECTURES
from pyterrier_mechir.models.components import COMPONENTS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ENCODER_DECODERS = ("t5", "mt5")

_TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "intermediate_size": 16,
}


class Cell(NamedTuple):
    """A kind of ranker over an architecture.

    Args:
        family: the class.
        architecture: ``config.model_type``.
        stack: which stack is patched, of an encoder-decoder that gives both to patch; empty for any other.
    """

    family: str
    architecture: str
    stack: str = ""


def cells() -> list[Cell]:
    """Every kind of ranker over every architecture that it has models of, family by family."""
    encoders = [name for name, row in ARCHITECTURES.items() if not row.is_decoder and not row.stack]
    decoders = [name for name, row in ARCHITECTURES.items() if row.is_decoder]
    return [
        *(Cell("BiEncoder", name) for name in (*encoders, *ENCODER_DECODERS, *decoders)),
        *(Cell("CrossEncoder", name) for name in encoders),
        *(Cell("MonoT5", name, stack) for name in ENCODER_DECODERS for stack in ("encoder", "decoder")),
        *(Cell("GenerativeReranker", name) for name in decoders),
        *(Cell("Splade", name) for name in encoders),
        *(Cell("ColBERT", name) for name in encoders),
    ]


def components(cell: Cell) -> list[str]:
    """The components that can be patched in a kind of ranker, as its architecture tells without weights."""
    lacks = Anatomy(_without_weights(cell.architecture), decoder=cell.stack == "decoder").lacks
    return [name for name, activation in COMPONENTS.items() if activation not in lacks]


def _without_weights(architecture: str) -> PreTrainedModel:
    import torch
    from transformers import AutoConfig, AutoModel

    from pyterrier_mechir.models.checkpoints import attending

    config = AutoConfig.for_model(architecture, **_TINY)
    with torch.device("meta"):
        return AutoModel.from_config(config, **attending(config))


def markdown() -> str:
    """The table of families, architectures and what can be patched, in Markdown."""
    of_family: dict[str, dict[tuple[str, ...], list[Cell]]] = {}
    for cell in cells():
        of_family.setdefault(cell.family, {}).setdefault(tuple(components(cell)), []).append(cell)
    lines = ["| ranker | architectures (`config.model_type`) | components |", "|---|---|---|"]
    for family, by_components in of_family.items():
        for found, of_components in by_components.items():
            names = ", ".join(f"{c.architecture} ({c.stack})" if c.stack else c.architecture for c in of_components)
            lines.append(f"| `{family}` | {names} | {', '.join(f'`{name}`' for name in found)} |")
    return "\n".join(lines) + "\n"
