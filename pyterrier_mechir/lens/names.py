"""What TransformerLens calls things, and what it is told of: tables for its registry and for the documentation."""

from __future__ import annotations

from transformers.models.auto import modeling_auto

from pyterrier_mechir.models.architectures import ARCHITECTURES
from pyterrier_mechir.models.components import COMPONENTS, HOOKS, PER_HEAD, TABLE

GROUP = "transformer_lens.architectures"
"""The group of entry points in which TransformerLens looks for adapters."""

ADAPTER = "pyterrier_mechir.lens.adapter:RankerAdapter"
"""The object that the entry points name."""


def adapted() -> list[str]:
    """The classes of transformers that have an adapter here: encoders and decoders, bare or with a classifier.

    Models with a head over the vocabulary have adapters of TransformerLens' own where they generate text.
    """
    bare, head = modeling_auto.MODEL_MAPPING_NAMES, modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    names = []
    for kind, table in ARCHITECTURES.items():
        mappings = (modeling_auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES,) if table.stack else (bare, head)
        names += [mapping[kind] for mapping in mappings if kind in mapping]
    return list(dict.fromkeys(map(str, names)))


def entry_points() -> str:
    """The lines of ``pyproject.toml`` by which an installed package tells TransformerLens of its adapters."""
    return "\n".join(f'{name} = "{ADAPTER}"' for name in adapted())


def hook_table() -> str:
    """The names of sites and of hook points, as a table in Markdown."""
    rows = ["| site | component | hook point | shape |", "|---|---|---|---|"]
    for component in COMPONENTS:
        if component.startswith("cross_"):
            continue
        site = TABLE[component].written.format(layer=5, number=8)
        hook = HOOKS[component] if component == "embed" else f"blocks.5.{HOOKS[component]}"
        rows.append(f"| `{site}` | `{component}` | `{hook}` | `{_shape(component)}` |")
    rows.append(f"| | | `blocks.5.attn.hook_attn_scores` | `{_shape('pattern')}` |")
    return "\n".join(rows)


def _shape(component: str) -> str:
    if component == "pattern":
        return "[run, head, position, position]"
    if component in PER_HEAD:
        return "[run, position, head, d_head]"
    return f"[run, position, {'d_mlp' if component == 'neuron' else 'd_model'}]"
