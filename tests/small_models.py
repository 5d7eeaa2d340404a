"""Tiny models with random weights, one per architecture, and tokenizers of each convention; nothing is downloaded."""

from __future__ import annotations

import json
import re
from functools import cache
from unittest import mock

import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from pyterrier_mechir.models.checkpoints import attending

TEXTS = [
    "The moon pulls the ocean into two bulges, so most coasts see two high tides each day.",
    "Bats find insects at night by the echoes of their own calls.",
    "A heat pump warms a house by moving heat from the cold air outside, not by burning fuel.",
    "Rome built straight roads of stone; some are still in use.",
    "tides",
    "An iron bridge expands on a warm day and shrinks at night. Engineers leave gaps, so that the bridge does not bend "
    "when the sun heats the deck and the night cools it again, day after day, for a hundred years or more.",
    "Yeast eats sugar and breathes out gas, which makes the dough rise before the bread is baked in the oven.",
]
"""Texts of very different lengths."""

QUERIES = [
    "why are there two high tides each day",
    "bats night",
    "heat pump house",
    "roman roads",
    "neap tides",
    "iron bridge",
    "how does yeast make bread dough rise",
]

_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "initializer_range": 0.3,
    "max_position_embeddings": 160,
}

ARCHITECTURES = ("bert", "distilbert", "electra", "roberta", "xlm-roberta", "modernbert", "mpnet")

_WORDPIECE = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_SENTENCEPIECE = ("<pad>", "<unk>", "<s>", "</s>", "<mask>")


def _wordpieces(made: Tokenizer, corpus: list[str], specials: tuple[str, ...]) -> dict[str, int]:
    """Letters, short words and longer words in two pieces; the library's own trainer differs from run to run."""
    split = [made.pre_tokenizer.pre_tokenize_str(made.normalizer.normalize_str(text)) for text in corpus]
    words = sorted({word for text in split for word, _ in text})
    letters = sorted(set("".join(words)))
    halves = [piece for word in words for piece in ((word,) if len(word) <= 5 else (word[:4], f"##{word[4:]}"))]
    pieces = dict.fromkeys([*specials, *letters, *(f"##{letter}" for letter in letters), *halves])
    return {piece: number for number, piece in enumerate(pieces)}


@cache
def tokenizer(architecture: str) -> tf.PreTrainedTokenizerBase:
    """A tokenizer trained on the texts above, in the convention of the architecture."""
    corpus = [*TEXTS, *QUERIES, "a an the x y z"] * 3
    if architecture in ("bert", "distilbert", "electra"):
        names, model, kind = _WORDPIECE, models.WordPiece(unk_token="[UNK]"), "wordpiece"
    elif architecture == "modernbert":
        names, model, kind = _WORDPIECE, models.BPE(unk_token="[UNK]"), "bytes"
    elif architecture == "xlm-roberta":
        names, model, kind = _SENTENCEPIECE, models.BPE(unk_token="<unk>"), "metaspace"
    else:
        names, model, kind = _SENTENCEPIECE, models.BPE(unk_token="<unk>"), "bytes"
    made = Tokenizer(model)
    pad, unk, cls, sep, mask = names
    first_ids = [cls, pad, sep, unk, mask] if names is _SENTENCEPIECE else list(names)
    options = {"vocab_size": 220, "special_tokens": first_ids, "show_progress": False}
    if kind == "wordpiece":
        made.normalizer = normalizers.BertNormalizer(lowercase=True)
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        made.model = models.WordPiece(_wordpieces(made, corpus, names), unk_token="[UNK]")
        trainer = None
    elif kind == "bytes":
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(**options)
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        made.decoder = decoders.Metaspace()
        trainer = trainers.BpeTrainer(**options)
    if trainer is not None:
        made.train_from_iterator(corpus, trainer)
    double = f"{sep} {sep}" if names is _SENTENCEPIECE else sep
    second = 0 if architecture in ("modernbert", "roberta", "xlm-roberta", "mpnet") else 1
    made.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=" ".join([cls, "$A", *double.split(), f"$B:{second}", f"{sep}:{second}"]),
        special_tokens=[(name, made.token_to_id(name)) for name in (cls, sep)],
    )
    inputs = ["input_ids", "attention_mask"]
    if architecture in ("bert", "electra"):
        inputs.insert(1, "token_type_ids")
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token=pad,
        unk_token=unk,
        cls_token=cls,
        sep_token=sep,
        mask_token=mask,
        model_input_names=inputs,
        model_max_length=150,
    )


def config(architecture: str, **changes: object) -> tf.PretrainedConfig:
    """A tiny config of the architecture."""
    made = tokenizer(architecture)
    shared = {"vocab_size": len(made), "pad_token_id": made.pad_token_id, "num_labels": 1, **_SIZES, **changes}
    if architecture == "bert":
        return tf.BertConfig(**shared)
    if architecture == "distilbert":
        return tf.DistilBertConfig(
            vocab_size=shared["vocab_size"],
            dim=shared["hidden_size"],
            n_layers=shared["num_hidden_layers"],
            n_heads=shared["num_attention_heads"],
            hidden_dim=shared["intermediate_size"],
            initializer_range=shared["initializer_range"],
            max_position_embeddings=shared["max_position_embeddings"],
            num_labels=shared["num_labels"],
            pad_token_id=shared["pad_token_id"],
        )
    if architecture == "electra":
        return tf.ElectraConfig(embedding_size=16, **shared)
    if architecture == "roberta":
        return tf.RobertaConfig(**shared)
    if architecture == "xlm-roberta":
        return tf.XLMRobertaConfig(**shared)
    if architecture == "modernbert":
        specials = {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
        return tf.ModernBertConfig(**shared, **specials, local_attention=16, global_attn_every_n_layers=2)
    if architecture == "mpnet":
        return tf.MPNetConfig(**shared)
    raise KeyError(architecture)


def build(
    architecture: str, classifier: bool, **changes: object
) -> tuple[tf.PreTrainedModel, tf.PreTrainedTokenizerBase]:
    """A model with random weights, always the same, and its tokenizer."""
    return _random(tf.AutoModelForSequenceClassification if classifier else tf.AutoModel, architecture, **changes)


def masked_lm(architecture: str, **changes: object) -> tuple[tf.PreTrainedModel, tf.PreTrainedTokenizerBase]:
    """A masked language model with random weights, about a third of whose logits are positive, and its tokenizer."""
    model, made = _random(tf.AutoModelForMaskedLM, architecture, **changes)
    with torch.no_grad():
        model.get_output_embeddings().bias -= 1.5
    return model, made


def _truncated(
    tensor: torch.Tensor, mean: float, std: float, low: float, high: float, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Normal numbers within bounds, those outside drawn again; versions of torch have ways of their own."""
    with torch.no_grad():
        tensor.normal_(mean, std, generator=generator)
        while (outside := (tensor < low) | (tensor > high)).any():
            again = torch.empty_like(tensor).normal_(mean, std, generator=generator)
            tensor.copy_(torch.where(outside, again, tensor))
    return tensor


def _random(auto: type, architecture: str, **changes: object) -> tuple[tf.PreTrainedModel, tf.PreTrainedTokenizerBase]:
    torch.manual_seed(0)
    with mock.patch.object(torch.nn.init, "_no_grad_trunc_normal_", _truncated):
        model = auto.from_config(config(architecture, **changes)).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, 1.0 if parameter.mean() > 0.5 else 0.0, 0.1)
    return model, tokenizer(architecture)


@cache
def t5_tokenizer() -> tf.PreTrainedTokenizerBase:
    """Pieces of the texts above and of monoT5's prompt, in the convention of T5."""
    prompt = ["Query: Document: Relevant: true false yes no", "a an the x y z"]
    words = sorted(set(re.findall(r"\w+|[^\w\s]", " ".join([*TEXTS, *QUERIES, *prompt]))))
    halves = [piece for word in words for piece in ((f"▁{word}",) if len(word) <= 9 else (f"▁{word[:5]}", word[5:]))]
    letters = ["▁", *sorted(set("".join(words)))]
    scores = dict.fromkeys(letters, -9.0) | dict.fromkeys(halves, -3.0) | {"<pad>": 0.0, "</s>": 0.0, "<unk>": 0.0}
    first = ("<pad>", "</s>", "<unk>")
    pieces = [*((name, 0.0) for name in first), *((name, at) for name, at in scores.items() if name not in first)]
    made = Tokenizer(models.Unigram(pieces, unk_id=2))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    made.decoder = decoders.Metaspace(prepend_scheme="always")
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_input_names=["input_ids", "attention_mask"],
    )


def build_t5(
    kind: str = "t5", auto_class: str = "AutoModelForSeq2SeqLM", **changes: object
) -> tuple[tf.PreTrainedModel, tf.PreTrainedTokenizerBase]:
    """A T5 with random weights, always the same, and its tokenizer.

    Args:
        kind: ``t5`` (an MLP of one map, shared embeddings, as monoT5), ``flan`` (a gated one, as T5 1.1) or ``mt5``.
        auto_class: the class of transformers that makes it of a config, or the name of a class.
        **changes: of the config.
    """
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 12, "d_ff": 48, "num_heads": 4, "num_layers": 3, "num_decoder_layers": 2}
    gated = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False} if kind != "t5" else {}
    tokens = {"vocab_size": len(t5_tokenizer()), "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}
    of_kind = tf.MT5Config if kind == "mt5" else tf.T5Config
    config = of_kind(**{**sizes, **gated, **tokens, "relative_attention_max_distance": 24, **changes})
    made = getattr(tf, auto_class)
    model = (made.from_config(config) if auto_class.startswith("Auto") else made(config)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith((".q.weight", ".k.weight")):
            torch.nn.init.normal_(parameter, 0.0, 0.18)
        elif name.endswith((".v.weight", ".o.weight", "wo.weight", "attention_bias.weight")):
            torch.nn.init.normal_(parameter, 0.0, 0.4)
        elif parameter.dim() == 1:
            torch.nn.init.normal_(parameter, 1.0, 0.1)
    if kind != "t5" and hasattr(model, "lm_head"):
        model.lm_head.weight = torch.nn.Parameter(0.2 * torch.randn_like(model.lm_head.weight))
    return model, t5_tokenizer()


DECODERS = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text")


@cache
def decoder_tokenizer(architecture: str, ends: bool = False) -> tf.PreTrainedTokenizerBase:
    """A tokenizer of the class that the architecture has, trained on the texts above and on words of prompts.

    Args:
        architecture: of :data:`DECODERS`.
        ends: whether it puts an end token after a text, as that of an embedding model does.
    """
    prompt = 'Judge whether the Document meets the Query\n\nQuery: Instruct: "yes" or "no".\nyes yes no no\nyes\nno'
    corpus = [*TEXTS, *(f"{text}\n" for text in TEXTS), *QUERIES, *[prompt] * 20, "a an the x y z"] * 3
    if architecture.startswith("qwen"):
        names, kind = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"], tf.Qwen2Tokenizer
        blank, bos, eos = kind(), None, "<|im_end|>"
        corpus = [*corpus, *["\n\n"] * 3]
    elif architecture.startswith("gemma"):
        names, kind = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "\n"], tf.GemmaTokenizer
        blank, bos, eos = kind(), "<bos>", "<eos>"
    else:
        names, kind = ["<unk>", "<s>", "</s>", "<0x0A>"], tf.LlamaTokenizer
        blank, bos, eos = kind(), "<s>", "</s>"
    learner = Tokenizer(models.BPE(unk_token=None if bos is None else "<unk>"))
    backend = blank.backend_tokenizer
    learner.normalizer = backend.normalizer
    words = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    learner.pre_tokenizer = backend.pre_tokenizer if bos is None else words
    letters = pre_tokenizers.ByteLevel.alphabet() if bos is None else []
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=names, initial_alphabet=letters, show_progress=False, min_frequency=3
    )
    learner.train_from_iterator(corpus if bos is None else " ".join(corpus).split("\n"), trainer)
    learnt = json.loads(learner.to_str())["model"]
    made = kind(vocab=learnt["vocab"], merges=[tuple(pair) for pair in learnt["merges"]], eos_token=eos)
    made.add_tokens(names[3:] if bos is None else [])
    made.add_special_tokens({"additional_special_tokens": names[1:3]} if bos is None else {"bos_token": bos})
    if architecture == "llama":
        made.pad_token = eos
    first, last = [bos] if bos else [], [eos] if ends else []
    if first or last:
        made.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=" ".join([*first, "$A", *last]),
            pair=" ".join([*first, "$A", *last, "$B", *last]),
            special_tokens=[(name, made.convert_tokens_to_ids(name)) for name in (*first, *last)],
        )
    made.model_max_length = 400
    return made


def build_decoder(
    architecture: str, auto_class: str = "AutoModel", *, ends: bool = False, **changes: object
) -> tuple[tf.PreTrainedModel, tf.PreTrainedTokenizerBase]:
    """A decoder of two layers with random weights, always the same, and its tokenizer.

    Pairs of heads share keys and values; windows and the caps of logits are small enough to matter.

    Args:
        architecture: of :data:`DECODERS`.
        auto_class: the class of transformers that makes it of a config.
        ends: as for :func:`decoder_tokenizer`.
        **changes: of the config.
    """
    torch.manual_seed(0)
    tokens = decoder_tokenizer(architecture, ends)
    sizes = _SIZES | {"num_hidden_layers": 2, "num_key_value_heads": 2, "head_dim": 12, "num_labels": 1}
    sizes["max_position_embeddings"] = 400
    of_kind: dict[str, dict[str, object]] = {
        "mistral": {"sliding_window": 48},
        "gemma2": {
            "sliding_window": 16,
            "query_pre_attn_scalar": 10,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
        "gemma3_text": {
            "sliding_window": 16,
            "query_pre_attn_scalar": 10,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    }
    made = tf.AutoConfig.for_model(
        architecture,
        vocab_size=len(tokens),
        pad_token_id=tokens.pad_token_id,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        **{**sizes, **of_kind.get(architecture, {}), **changes},
    )
    model = getattr(tf, auto_class).from_config(made, **attending(made)).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, 1.0 if parameter.mean() > 0.5 else 0.0, 0.1)
    return model, tokens
