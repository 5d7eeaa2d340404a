"""Where the parts of each transformer architecture are.

One row of :data:`ARCHITECTURES` is all that the package knows of an architecture: the sweep engine, the recorder
and every component are written against :class:`~pyterrier_mechir.models.anatomy.Anatomy`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Architecture:
    """Paths of the parts of one architecture, or of one of the two stacks of an encoder-decoder.

    Args:
        layers: the list of layers, from the stack.
        attention: in a layer, the self-attention module. Called with the layer's hidden states, it returns a tuple
            that begins with the heads' outputs z (or, where ``out_proj`` lies inside it, with ``out_proj(z)``).
        out_proj: in a layer, the linear map of the concatenated head outputs z to the attention output.
        mlp_out: in a layer, the last linear map of the MLP.
        qkv: in a layer, the query, key and value maps, or the one map that gives all three after one another.
        mid_norm: in a layer, the norm whose output is the residual stream between attention and MLP; empty where that
            stream is not normed (pre-norm layers).
        out_norm: in a layer, the norm whose output is the residual stream that leaves the layer; empty as above.
        final_norm: the norm between the last layer and the model's output, from the stack; empty where the last
            layer's stream is the output.
        plain_attention: whether layers apply ``qkv`` to their input as it is and attend by plain scaled dot products,
            with no norm before and no rotary or relative positions.
        attention_interface: whether attention goes through transformers' attention interface, where its weights can be
            read and replaced.
        embeddings: the modules between token ids and the first layer, from the stack; absent ones are skipped.
        layer_returns_tuple: whether a layer returns its hidden states in a tuple.
        added_norms: in a layer, norms of what attention and MLP give, before it is added to the stream; empty where
            it is added as it is.
        stack: the stack, from the base model; empty where the base model is one.
        hands_on_bias: whether layers return, after their hidden states, the bias of attention by relative positions
            that the first layer computes.
        cross_attention: in a layer of a decoder, the module of cross-attention, which projects itself; empty where
            there is none, as for the two that follow.
        cross_out_proj: in a layer, what ``out_proj`` is for cross-attention.
        cross_qkv: in a layer, what ``qkv`` is for cross-attention, three maps.
        blocks: what TransformerLens calls the layers.
        mlp_in: in a layer, the map into the MLP's hidden units; in gated MLPs the map that is activated and the one
            that it is multiplied with, or the one map that gives both after one another.
        is_decoder: whether it is the decoder of a language model, which reads prompts.
        first_norm: the norm after the embeddings, from the stack, whose output enters the first layer (through a map of
            the embeddings to another width, where there is one); empty where word embeddings enter it.
        bias_switches: the switches of the config that give maps and norms the biases that they lack without.
    """

    layers: str
    attention: str
    out_proj: str
    mlp_out: str
    qkv: tuple[str, ...]
    mid_norm: str = ""
    out_norm: str = ""
    final_norm: str = ""
    plain_attention: bool = False
    attention_interface: bool = True
    embeddings: tuple[str, ...] = ("embeddings",)
    layer_returns_tuple: bool = False
    added_norms: tuple[str, str] | tuple[()] = ()
    stack: str = ""
    hands_on_bias: bool = False
    cross_attention: str = ""
    cross_out_proj: str = ""
    cross_qkv: tuple[str, ...] = ()
    blocks: str = "blocks"
    mlp_in: tuple[str, ...] = ()
    is_decoder: bool = False
    first_norm: str = ""
    bias_switches: tuple[str, ...] = ()


_BERT = Architecture(
    layers="encoder.layer",
    attention="attention.self",
    out_proj="attention.output.dense",
    mlp_out="output.dense",
    qkv=("attention.self.query", "attention.self.key", "attention.self.value"),
    mid_norm="attention.output.LayerNorm",
    out_norm="output.LayerNorm",
    plain_attention=True,
    embeddings=("embeddings", "embeddings_project"),
    mlp_in=("intermediate.dense",),
    first_norm="embeddings.LayerNorm",
)

_LLAMA = Architecture(
    layers="layers",
    attention="self_attn",
    out_proj="self_attn.o_proj",
    mlp_out="mlp.down_proj",
    qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    final_norm="norm",
    embeddings=("embed_tokens",),
    mlp_in=("mlp.gate_proj", "mlp.up_proj"),
    is_decoder=True,
    bias_switches=("attention_bias", "mlp_bias"),
)

_GEMMA = replace(_LLAMA, added_norms=("post_attention_layernorm", "post_feedforward_layernorm"))

_T5 = Architecture(
    layers="block",
    attention="layer.0.SelfAttention",
    out_proj="layer.0.SelfAttention.o",
    mlp_out="layer.1.DenseReluDense.wo",
    qkv=("layer.0.SelfAttention.q", "layer.0.SelfAttention.k", "layer.0.SelfAttention.v"),
    final_norm="final_layer_norm",
    embeddings=("embed_tokens",),
    stack="encoder",
    hands_on_bias=True,
    blocks="encoder_blocks",
)

_T5_DECODER = replace(
    _T5,
    mlp_out="layer.2.DenseReluDense.wo",
    stack="decoder",
    cross_attention="layer.1.EncDecAttention",
    cross_out_proj="layer.1.EncDecAttention.o",
    cross_qkv=("layer.1.EncDecAttention.q", "layer.1.EncDecAttention.k", "layer.1.EncDecAttention.v"),
    blocks="decoder_blocks",
)

ARCHITECTURES: dict[str, Architecture] = {
    "bert": _BERT,
    "electra": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "distilbert": Architecture(
        layers="transformer.layer",
        attention="attention",
        out_proj="attention.out_lin",
        mlp_out="ffn.lin2",
        qkv=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        mid_norm="sa_layer_norm",
        out_norm="output_layer_norm",
        plain_attention=True,
        mlp_in=("ffn.lin1",),
        first_norm="embeddings.LayerNorm",
    ),
    "modernbert": Architecture(
        layers="layers",
        attention="attn",
        out_proj="attn.Wo",
        mlp_out="mlp.Wo",
        qkv=("attn.Wqkv",),
        final_norm="final_norm",
        mlp_in=("mlp.Wi",),
        first_norm="embeddings.norm",
        bias_switches=("attention_bias", "mlp_bias", "norm_bias"),
    ),
    "mpnet": Architecture(
        layers="encoder.layer",
        attention="attention.attn",
        out_proj="attention.attn.o",
        mlp_out="output.dense",
        qkv=("attention.attn.q", "attention.attn.k", "attention.attn.v"),
        mid_norm="attention.LayerNorm",
        attention_interface=False,
        out_norm="output.LayerNorm",
        layer_returns_tuple=True,
        mlp_in=("intermediate.dense",),
        first_norm="embeddings.LayerNorm",
    ),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma"), _LLAMA),
    **dict.fromkeys(("gemma2", "gemma3_text"), _GEMMA),
    **dict.fromkeys(("t5", "mt5"), _T5),
    **dict.fromkeys(("t5.decoder", "mt5.decoder"), _T5_DECODER),
}
"""Supported architectures by ``config.model_type``; decoders of encoder-decoders by that and ``.decoder``."""
