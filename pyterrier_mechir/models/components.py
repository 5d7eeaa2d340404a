"""The components of a model that can be patched: one table, of which every other list of components is a view.

What each is:

- ``head``: z, the output of one attention head before the output projection (``attn.hook_z`` in TransformerLens).
- ``q``, ``k``, ``v``: a head's queries, keys or values, before rotary positions and norms of their own
  (``attn.hook_q`` and so on). Where heads share keys and values (grouped-query attention), there are as many k and v as
  groups, and patching one patches what its whole group reads.
- ``pattern``: a head's attention weights after softmax; the row of each position says where it attends
  (``attn.hook_pattern``).
- ``attn_out``, ``mlp_out``: what the attention and the MLP add to the residual stream, before the norm that follows in
  post-norm models (``hook_attn_out``, ``hook_mlp_out``).
- ``neuron``: one hidden unit of the MLP after its nonlinearity, and after the gate where there is one
  (``mlp.hook_post``).
- ``resid_pre``, ``resid_mid``, ``resid_post``: the residual stream that enters a layer, that is between its attention
  and its MLP, and that leaves it (``hook_resid_pre`` and so on). In post-norm models these are the normed streams,
  which all that comes after reads; in pre-norm models the stream before any norm. In decoders with cross-attention,
  ``resid_mid`` comes before it.
- ``embed``: the word embeddings, before positions and norm (``hook_embed``).
- ``cross_head``, ``cross_q``, ``cross_k``, ``cross_v``, ``cross_pattern``, ``cross_attn_out``: the same of the
  cross-attention, by which a decoder reads what the encoder made of the text (``cross_attn.hook_z`` and so on). Queries
  and patterns are the decoder's; keys and values are made of the encoder's output.
- ``attn_out.feature`` and its like: one feature that an autoencoder tells of an activation, for rankers to which one
  is attached. Patching a feature moves the activation by what the feature's change makes; what the autoencoder leaves
  out stays as it is.
"""

from __future__ import annotations

from typing import NamedTuple

CODED = ":feature"
"""Ends the name of an activation that is read as the features of an autoencoder."""


class Component(NamedTuple):
    """A row of the table.

    Args:
        activation: the activation that is replaced to patch the component.
        hook: what TransformerLens calls it, within a block but for ``hook_embed``.
        stands: where it is in its layer: ``before`` attention (what attention reads), ``into`` a head (what changes
            only what attention gives for that head), ``after`` attention (what leaves the attention weights of its
            layer as they are), or at the ``end`` of the layer.
        part: what a layer has several of, ``head``, ``neuron`` or ``feature``; empty where it has one for all.
        written: how a site of it is written, with the ``{layer}`` and the ``{number}`` of the head, neuron or feature.
        heading: what reports call a map of it; empty where its own name says it.
        is_stream: whether all that follows it reads the run through it alone, so that where it is another run's at all
            positions, the score is that run's.
        is_seen: whether, of what is within a layer, other positions attend to it.
    """

    activation: str
    hook: str
    stands: str
    part: str = ""
    written: str = ""
    heading: str = ""
    is_stream: bool = False
    is_seen: bool = False


_CODABLE = ("attn_out", "mlp_out", "resid_pre", "resid_mid", "resid_post")


def _rows() -> dict[str, Component]:
    head = "L{layer}H{number}"
    rows = {
        "head": Component("z", "attn.hook_z", "after", "head", head, "Attention heads"),
        "q": Component("q", "attn.hook_q", "into", "head", f"{head}.q", "Queries of attention heads"),
        "k": Component("k", "attn.hook_k", "into", "head", f"{head}.k", "Keys of attention heads", is_seen=True),
        "v": Component("v", "attn.hook_v", "into", "head", f"{head}.v", "Values of attention heads", is_seen=True),
        "pattern": Component(
            "pattern", "attn.hook_pattern", "into", "head", f"{head}.pattern", "Attention patterns of heads"
        ),
        "attn_out": Component("attn_out", "hook_attn_out", "after"),
        "mlp_out": Component("mlp_out", "hook_mlp_out", "after"),
        "neuron": Component("mlp_post", "mlp.hook_post", "after", "neuron", "L{layer}N{number}"),
        "resid_pre": Component("resid_pre", "hook_resid_pre", "before", is_stream=True),
        "resid_mid": Component("resid_mid", "hook_resid_mid", "after", is_stream=True),
        "resid_post": Component("resid_post", "hook_resid_post", "end", is_stream=True),
        "embed": Component("embed", "hook_embed", "before", written="embed"),
    }
    for name in ("head", "q", "k", "v", "pattern"):
        own = rows[name]
        written = f"{head}.cross" if name == "head" else f"{head}.cross_{name}"
        rows[f"cross_{name}"] = own._replace(
            activation=f"cross_{own.activation}",
            hook=f"cross_{own.hook}",
            stands="after",
            written=written,
            heading=f"{own.heading} (cross-attention)",
        )
    rows["cross_attn_out"] = Component("cross_attn_out", "hook_cross_attn_out", "after")
    for name in _CODABLE:
        own = rows[name]
        rows[f"{name}.feature"] = own._replace(
            activation=own.activation + CODED,
            part="feature",
            written=f"L{{layer}}.{name}.F{{number}}",
            is_stream=False,
        )
    return {name: row if row.written else row._replace(written=f"L{{layer}}.{name}") for name, row in rows.items()}


TABLE: dict[str, Component] = _rows()
"""Every component by its name, in the order in which results list them."""

ACTIVATIONS = {name: row.activation for name, row in TABLE.items()}
"""The activation of every component."""

CODED_COMPONENTS = {name: row.activation for name, row in TABLE.items() if row.part == "feature"}
"""The components that are features of an autoencoder, and their activations."""

COMPONENTS: dict[str, str] = {name: row.activation for name, row in TABLE.items() if row.part != "feature"}
"""Each component that models have by themselves, and the activation that is replaced to patch it."""

HOOKS = {name: TABLE[name].hook for name in COMPONENTS}
"""What TransformerLens calls each component, within a block but for ``hook_embed``."""

PER_HEAD = tuple(name for name, row in TABLE.items() if row.part == "head")
"""Components of which each layer has one per head."""

CROSS = tuple(activation for activation in COMPONENTS.values() if activation.startswith("cross_"))
"""The activations of cross-attention."""

BLOCK = ("resid_pre", "attn_out", "mlp_out")
"""What ``component="block"`` stands for."""


def _that_stand(*places: str) -> frozenset[str]:
    return frozenset(TABLE[name].activation for name in COMPONENTS if TABLE[name].stands in places)


WHOLE_STREAMS = frozenset(row.activation for row in TABLE.values() if row.is_stream)
"""Activations through which alone all that follows reads a run."""

BEFORE_ATTENTION = _that_stand("before", "into")
"""Activations of a layer that its attention weights come after, or are."""

INPUTS_OF_HEADS = _that_stand("into")
"""Activations whose replacement changes only what attention gives for their own head."""

SEEN = frozenset(row.activation for row in TABLE.values() if row.is_seen)
"""Activations within a layer that other positions attend to."""

AFTER_ATTENTION = _that_stand("after")
"""Activations whose replacement leaves the attention weights of their own layer unchanged."""

STREAMS = ("resid_pre", "resid_post")
"""Activations that column replay patches where rows enter a layer, or leave the last one."""

STARTS = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
"""The activations that column replay patches, in the order in which their rows enter."""


class ReadBy(NamedTuple):
    """The attention that reads queries or keys.

    Args:
        z: the activation that is its heads' outputs.
        pattern: the activation that is its weights.
    """

    z: str
    pattern: str


READ_BY = {f"{of}{name}": ReadBy(f"{of}z", f"{of}pattern") for of in ("", "cross_") for name in ("q", "k")}
"""What reads the activations that reach the score through a softmax alone."""
