"""What a ranker can be made of, and the one sentence that says so where it cannot."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from small_models import build, build_decoder, build_t5, masked_lm

from pyterrier_mechir import BiEncoder, ColBERT, CrossEncoder, GenerativeReranker, MonoT5, Splade, load_ranker

SMALL = {"num_hidden_layers": 1}

FAMILIES = {
    BiEncoder: lambda: build("bert", classifier=False, **SMALL),
    ColBERT: lambda: build("bert", classifier=False, **SMALL),
    CrossEncoder: lambda: build("bert", classifier=True, **SMALL),
    GenerativeReranker: lambda: build_decoder("llama", "AutoModelForCausalLM", **SMALL),
    MonoT5: lambda: build_t5(num_layers=1, num_decoder_layers=1),
    Splade: lambda: masked_lm("bert", **SMALL),
}

every_family = pytest.mark.parametrize("kind", FAMILIES)

every_loader = pytest.mark.parametrize("kind", [*FAMILIES, load_ranker])


def refusal(kind, given):
    """The one sentence that refuses something."""
    with pytest.raises((ValueError, TypeError)) as raised:
        kind(given)
    message = str(raised.value)
    assert "pyterrier_mechir" in str(raised.traceback[-1].path)
    assert len(message) < 500
    assert "\n" not in message
    return message


@pytest.fixture(scope="module")
def parts():
    return {kind: make() for kind, make in FAMILIES.items()}


@every_family
def test_a_pair_is_a_model_and_its_tokenizer_in_this_order(kind, parts):
    model, tokenizer = parts[kind]
    assert "the wrong way round; give (model, tokenizer)" in refusal(kind, (tokenizer, model))
    for other in (None, "bert-base-uncased", tokenizer.backend_tokenizer, model):
        assert "the second is no tokenizer; give (model, tokenizer)" in refusal(kind, (model, other))
    for other in (None, "bert-base-uncased", model.config):
        assert "the first is no model" in refusal(kind, (other, tokenizer))


@every_family
def test_what_is_no_pair_and_no_name_is_refused(kind, parts):
    model, tokenizer = parts[kind]
    for other in (model, tokenizer, None, 7, (model,), (model, tokenizer, 3), [model, tokenizer], {"model": model}, ()):
        message = refusal(kind, other)
        assert f"{kind.__name__} cannot be made of a {type(other).__name__}" in message
        assert "a directory, or a loaded (model, tokenizer)" in message


def test_a_loaded_pair_has_no_files_that_tell_its_class(parts):
    for other in (parts[BiEncoder], parts[BiEncoder][0], None):
        assert "of the class that a loaded (model, tokenizer) needs" in refusal(load_ranker, other)


def test_a_model_of_sentence_transformers_is_given_alone(parts):
    library = pytest.importorskip("sentence_transformers")
    model = library.SentenceTransformer.__new__(library.SentenceTransformer)
    assert "has its own tokenizer; give it alone" in refusal(BiEncoder, (model, parts[BiEncoder][1]))


# Directories


@every_loader
def test_a_directory_that_is_not_there_is_said_to_be_missing(kind, tmp_path):
    for name in (tmp_path / "no" / "model", "./model of mine", "a/b/c"):
        assert "there is no such directory" in refusal(kind, name)


@every_loader
def test_a_file_is_no_directory(kind, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert "it is a file; give the directory that it is in" in refusal(kind, tmp_path / "model.safetensors")


@every_loader
def test_a_directory_without_a_model_is_said_to_have_none(kind, tmp_path, parts):
    parts[BiEncoder][1].save_pretrained(tmp_path)
    assert "there is no config.json in" in refusal(kind, tmp_path)


@every_loader
@pytest.mark.parametrize("with_config", [False, True])
def test_an_adapter_without_its_model_is_to_be_merged(kind, with_config, tmp_path, parts):
    model, tokenizer = parts[BiEncoder]
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "a/b"}))
    save_file({"lora_A.weight": torch.ones(2, 2)}, tmp_path / "adapter_model.safetensors")
    if with_config:
        model.config.save_pretrained(tmp_path)
    message = refusal(kind, tmp_path)
    assert "it has an adapter of PEFT and no model; load the model that it was trained on" in message
    assert "merge_and_unload" in message


def test_an_adapter_within_a_directory_of_sentence_transformers_is_to_be_merged(tmp_path):
    modules = [
        {"idx": 0, "name": "0", "path": "0_Transformer", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    for folder, file in (("0_Transformer", "adapter_config.json"), ("1_Pooling", "config.json")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).write_text(json.dumps({"pooling_mode": "mean"}))
    for kind in (BiEncoder, load_ranker):
        assert "it has an adapter of PEFT and no model" in refusal(kind, tmp_path)


def test_a_model_whose_config_is_of_no_known_kind_is_refused_in_one_short_sentence(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["NoSuchModel"]}))
    assert "The reason was: " in refusal(BiEncoder, tmp_path)


# Quantised models


@pytest.mark.parametrize("kind", [kind for kind in FAMILIES if kind is not ColBERT])
def test_a_checkpoint_of_quantised_weights_is_refused(kind, tmp_path, parts):
    for part in parts[kind]:
        part.save_pretrained(tmp_path)
    said = json.loads((tmp_path / "config.json").read_text())
    said["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps(said))
    with pytest.raises(ValueError, match=r"^cannot load .* its weights are quantised, .* take the checkpoint that it"):
        kind(tmp_path)


def dynamically(model):
    return torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)


def to_integers(model):
    """As bitsandbytes has them."""
    linear = next(module for module in model.modules() if isinstance(module, torch.nn.Linear))
    linear.weight = torch.nn.Parameter(linear.weight.to(torch.int8), requires_grad=False)
    return model


def marked(model):
    """As transformers marks what it has loaded with a quantiser."""
    model.is_quantized = True
    return model


@every_family
@pytest.mark.parametrize("quantise", [dynamically, to_integers, marked])
@pytest.mark.filterwarnings("ignore")
def test_a_quantised_model_is_refused(kind, quantise):
    model, tokenizer = FAMILIES[kind]()
    assert "is quantised" in refusal(kind, (quantise(model), tokenizer))
