"""Tiny models with random weights, one per architecture, and tokenizers of each convention; nothing is downloaded."""

from __future__ import annotations

from functools import cache

import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

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
    torch.manual_seed(0)
    auto = tf.AutoModelForSequenceClassification if classifier else tf.AutoModel
    model = auto.from_config(config(architecture, **changes)).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, 1.0 if parameter.mean() > 0.5 else 0.0, 0.1)
    return model, tokenizer(architecture)
