"""The components of a model that can be patched: one table."""

from __future__ import annotations

COMPONENTS: dict[str, str] = {
    "head": "z",
    "q": "q",
    "k": "k",
    "v": "v",
    "pattern": "pattern",
    "attn_out": "attn_out",
    "mlp_out": "mlp_out",
    "neuron": "mlp_post",
    "resid_pre": "resid_pre",
    "resid_mid": "resid_mid",
    "resid_post": "resid_post",
    "embed": "embed",
    "cross_head": "cross_z",
    "cross_q": "cross_q",
    "cross_k": "cross_k",
    "cross_v": "cross_v",
    "cross_pattern": "cross_pattern",
    "cross_attn_out": "cross_attn_out",
}
"""Each component and the activation that is replaced to patch it.

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
"""

CROSS = tuple(activation for activation in COMPONENTS.values() if activation.startswith("cross_"))
"""The activations of cross-attention."""

CODED = ":feature"
"""Ends the name of an activation that is read as the features of an autoencoder."""

FEATURES = {
    f"{name}.feature": COMPONENTS[name] + CODED
    for name in ("attn_out", "mlp_out", "resid_pre", "resid_mid", "resid_post")
}
"""Components of rankers to which an autoencoder is attached: the features of one of these activations. Patching one
moves the activation by what the feature's change makes; what the autoencoder leaves out stays as it is."""

ACTIVATIONS = COMPONENTS | FEATURES
"""The activation of every component."""

HOOKS = {
    "head": "attn.hook_z",
    "q": "attn.hook_q",
    "k": "attn.hook_k",
    "v": "attn.hook_v",
    "pattern": "attn.hook_pattern",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "neuron": "mlp.hook_post",
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "embed": "hook_embed",
    "cross_head": "cross_attn.hook_z",
    "cross_q": "cross_attn.hook_q",
    "cross_k": "cross_attn.hook_k",
    "cross_v": "cross_attn.hook_v",
    "cross_pattern": "cross_attn.hook_pattern",
    "cross_attn_out": "hook_cross_attn_out",
}
"""What TransformerLens calls each component, within a block but for ``hook_embed``."""

PER_HEAD = (
    "head",
    "q",
    "k",
    "v",
    "pattern",
    "cross_head",
    "cross_q",
    "cross_k",
    "cross_v",
    "cross_pattern",
)
"""Components of which each layer has one per head."""

BLOCK = ("resid_pre", "attn_out", "mlp_out")
"""What ``component="block"`` stands for."""

_OF_HEAD = {"head": "", "cross_head": ".cross"}

_KINDS = {"neuron": "neuron"} | dict.fromkeys(FEATURES, "feature")

AFTER_ATTENTION = frozenset({"z", "attn_out", "resid_mid", "mlp_post", "mlp_out", *CROSS})
"""Activations whose replacement leaves the attention weights of their own layer unchanged."""

INPUTS_OF_HEADS = frozenset({"q", "k", "v", "pattern"})
"""Activations whose replacement changes only what attention gives for their own head."""

_BEFORE_ATTENTION = frozenset({"embed", "resid_pre", "q", "k", "v", "pattern"})
"""Activations of a layer that its attention weights come after, or are."""
