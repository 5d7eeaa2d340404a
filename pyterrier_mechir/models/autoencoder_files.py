"""The files of sparse autoencoders as SAELens writes them, of all its versions, read strictly.

Up to version 5, ``cfg.json`` says in ``activation_fn_str`` (at first ``activation_fn``) what is computed, whatever the
``architecture``; from version 6 on, the architecture does. A setting that has to do with encoding and decoding is
followed or refused by name, and so is one that no version of SAELens knows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

_WITHOUT_EFFECT = """
    act_store_device adam_beta1 adam_beta2 autocast autocast_lm aux_loss_coefficient b_dec_init_method
    cached_activations_path checkpoint_path compile_llm compile_sae context_size d_in d_sae dataset_path
    dataset_trust_remote_code dead_feature_estimation_method dead_feature_threshold dead_feature_window
    decoder_heuristic_init decoder_heuristic_init_norm decoder_init_norm decoder_orthogonal_init device
    disable_concat_sequences dtype eval_batch_size_prompts eval_every_n_wandb_logs exclude_special_tokens
    expansion_factor feature_reinit_scale feature_sampling_method feature_sampling_window finetuning_method
    finetuning_tokens from_pretrained_path hook_eval hook_head_index hook_layer hook_name hook_point hook_point_eval
    hook_point_head_index hook_point_layer init_encoder_as_decoder_transpose is_dataset_tokenized jumprelu_bandwidth
    jumprelu_init_threshold jumprelu_sparsity_loss_mode jumprelu_tanh_scale l0_coefficient l0_warm_up_steps
    l1_coefficient l1_warm_up_steps llm_compilation_mode log_activations_store_to_wandb log_optimizer_state_to_wandb
    log_to_wandb logger lp_norm lr lr_decay_steps lr_end lr_scheduler_name lr_warm_up_steps metadata
    model_class_name model_from_pretrained_kwargs model_kwargs model_name mse_loss_normalization n_batches_in_buffer
    n_checkpoints n_eval_batches n_eval_seqs n_restart_cycles neuronpedia_id noise_scale normalize_sae_decoder
    output_path pre_act_loss_coefficient prepend_bos resample_batches resume resume_from_checkpoint run_name
    sae_compilation_mode sae_lens_training_version sae_lens_version save_final_checkpoint
    scale_sparsity_penalty_by_decoder_norm seed seqpos_slice sequence_separator_token store_batch_size
    store_batch_size_prompts streaming tokens_per_buffer topk_threshold_lr total_training_steps total_training_tokens
    train_batch_size train_batch_size_tokens training_tokens use_cached_activations use_error_term use_ghost_grads
    use_sparse_activations verbose wandb_entity wandb_id wandb_log_frequency wandb_project
"""
"""Settings of training, of the data, and of where the activations are from: ``d_in`` and ``d_sae`` are the weights'."""

_RENAMED = {"activation_fn": "activation_fn_str", "scaling_factor": "finetuning_scaling_factor"}
"""Settings and weights that had other names at first."""

_OF_ARCHITECTURE = {
    "standard": {"relu": "standard", "tanh-relu": "standard", "topk": "topk"},
    "topk": {"topk": "topk"},
    "jumprelu": {"relu": "jumprelu", "tanh-relu": "jumprelu"},
}
"""What an architecture with an activation function is here."""

_FACTOR = "finetuning_scaling_factor"


class Described(NamedTuple):
    """What the files of an autoencoder say.

    Args:
        weights: its weights, by name.
        options: of :class:`~pyterrier_mechir.SparseAutoencoder`.
    """

    weights: dict[str, Tensor]
    options: dict[str, Any]


def read_autoencoder(directory: str | Path) -> Described:
    """Read ``cfg.json`` and ``sae_weights.safetensors``.

    Raises:
        ValueError: the files are not there, or say something that is not known or not supported; the message names it.
    """
    paths = [Path(directory) / name for name in ("cfg.json", "sae_weights.safetensors")]
    if missing := [path.name for path in paths if not path.is_file()]:
        raise ValueError(f"{str(directory)!r} has no {' and no '.join(missing)}; give a directory saved by SAELens.")
    said = json.loads(paths[0].read_text(encoding="utf-8"))
    try:
        settings = {_RENAMED.get(name, name): value for name, value in said.items()}
        options = _options(settings)
        weights = _scaled({_RENAMED.get(name, name): w for name, w in load_file(paths[1]).items()}, settings)
    except ValueError as error:
        raise ValueError(
            f"the autoencoder in {str(directory)!r} has {error}, which is not supported; fold it into the weights with "
            "SAELens, or give an object with encode and decode."
        ) from None
    return Described(weights, options)


def _options(settings: dict[str, Any]) -> dict[str, Any]:
    """The options of an autoencoder.

    Raises:
        ValueError: a setting that is not supported, named and told by the message.
    """
    _check_unscaled(settings)
    architecture = settings.pop("architecture", "standard")
    activation = settings.pop("activation_fn_str", None) or ("topk" if architecture == "topk" else "relu")
    of_activation = dict(settings.pop("activation_fn_kwargs", None) or {})
    kind = _OF_ARCHITECTURE.get(architecture, {}).get(activation)
    if kind is None:
        what = f" with activation_fn {activation!r}" if architecture in _OF_ARCHITECTURE else ""
        raise ValueError(f"architecture {architecture!r}{what}")
    k = settings.pop("k", None)
    k = of_activation.pop("k", k) if kind == "topk" else None
    if of_activation:
        raise ValueError(f"activation_fn_kwargs {of_activation!r}")
    options = {
        "kind": kind,
        "k": k,
        "activation": "relu" if kind == "topk" else activation,
        "centres_input": settings.pop("apply_b_dec_to_input", True),
        "rescales": settings.pop("rescale_acts_by_decoder_norm", False),
    }
    if unknown := sorted(set(settings).difference(_WITHOUT_EFFECT.split(), [_FACTOR])):
        raise ValueError(f"the setting {unknown[0]} {settings[unknown[0]]!r}"[:200])
    return options


def _check_unscaled(settings: dict[str, Any]) -> None:
    """Check that activations are encoded as they are, and not as heads apart, which hook points of ``z`` mean."""
    of_heads = str(settings.get("hook_name") or settings.get("hook_point") or "").endswith("_z")
    reshaped = settings.pop("reshape_activations", "hook_z" if of_heads else "none")
    normalised = settings.pop("normalize_activations", "none")
    for name, value in (("normalize_activations", normalised), ("reshape_activations", reshaped)):
        if value not in ("none", None, False):
            raise ValueError(f"{name} {value!r}")


def _scaled(weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights, with the factor of each feature, where it has one, in its row of the decoder.

    Raises:
        ValueError: the settings and the weights do not agree on whether there are such factors.
    """
    weights, declared = dict(weights), settings.get(_FACTOR)
    factor = weights.pop(_FACTOR, None)
    is_one = factor is None or bool(torch.all(factor == 1))
    if (declared and factor is None) or (declared is False and not is_one):
        raise ValueError(f"{_FACTOR} {declared!r} and {'no ' if factor is None else ''}weights of that name")
    if factor is not None:
        weights["W_dec"] = weights["W_dec"] * factor.unsqueeze(-1)
    return weights
