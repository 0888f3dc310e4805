# SPDX-License-Identifier: Apache-2.0
"""Tiny models of the causal architectures in use, each with random weights."""

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

SMALL: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": 128,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        # Mixtures of experts.
        "num_experts": 4,
        "num_local_experts": 4,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
        # Linear attention and state spaces.
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "mamba_d_ssm": 64,
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "ssm_state_size": 8,
        "state_size": 8,
        # GPT-2 and its kin.
        "n_embd": 32,
        "n_head": 4,
        "n_layer": 2,
        "n_positions": 64,
        "d_model": 32,
        "ffn_dim": 64,
        "word_embed_proj_dim": 32,
    }
)
LATENT: Final[Mapping[str, Any]] = MappingProxyType(
    {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
)
"""Multi-head latent attention."""

VISION: Final = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}

ARCHITECTURES: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "llama": {},
        "llama4_text": {"interleave_moe_layer_step": 1},
        "mistral": {},
        "ministral3": {},
        "mixtral": {},
        "qwen2": {},
        "qwen2_moe": {},
        "qwen3": {},
        "qwen3_moe": {},
        "qwen3_next": {"layer_types": ["linear_attention", "full_attention"]},
        "qwen3_5_text": {"layer_types": ["linear_attention", "full_attention"]},
        "gemma": {},
        "gemma2": {},
        "gemma3_text": {},
        "gemma3": {},
        "gemma4_text": {"head_dim": None, "num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0},
        "phi": {},
        "phi3": {},
        "phimoe": {},
        "gpt2": {},
        "gpt_neox": {},
        "gpt_oss": {},
        "gpt_bigcode": {},
        "gptj": {"rotary_dim": 4},
        "opt": {},
        "bloom": {},
        "mpt": {},
        "falcon": {"head_dim": None},
        "falcon_h1": {},
        "mamba": {},
        "mamba2": {"head_dim": 8, "num_heads": 8},
        "nemotron": {},
        "nemotron_h": {"layers_block_type": ["mamba", "attention"]},
        "granite": {},
        "granitemoe": {},
        "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
        "jamba": {"attn_layer_offset": 1, "attn_layer_period": 2, "mamba_dt_rank": 4},
        "bamba": {"attn_layer_indices": [1]},
        "olmo2": {},
        "olmo3": {},
        "olmoe": {},
        "deepseek_v2": {**LATENT, "head_dim": None, "num_key_value_heads": 4},
        "deepseek_v3": {
            **LATENT,
            "head_dim": None,
            "num_key_value_heads": 4,
            "first_k_dense_replace": 1,
            "n_group": 2,
            "topk_group": 1,
        },
        "cohere": {},
        "cohere2": {},
        "glm": {},
        "glm4": {},
        "glm4_moe": {},
        "stablelm": {},
        "starcoder2": {},
        "smollm3": {},
        "exaone4": {},
        "ernie4_5": {},
        "lfm2": {},
        "minimax_m2": {},
        "seed_oss": {},
        "hunyuan_v1_dense": {},
        "recurrent_gemma": {},
    }
)
"""Fields that differ from SMALL; None: the architecture's own default."""


def tiny_config(model_type: str) -> PretrainedConfig:
    """The config of a tiny model."""
    config_class: Any = CONFIG_MAPPING[model_type]
    text_class = type(config_class().get_text_config())
    known = _fields(text_class)
    chosen = {**SMALL, **ARCHITECTURES[model_type]}
    fields = {name: value for name, value in chosen.items() if name in known and value is not None}
    if text_class is not config_class:
        fields = {"text_config": fields, "vision_config": VISION}
    config: PretrainedConfig = config_class(**fields)
    return config


def tiny_model(model_type: str) -> PreTrainedModel:
    """A tiny model, always with the same weights."""
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(tiny_config(model_type))  # type: ignore[no-untyped-call]
    return model


def _fields(config_class: type[PretrainedConfig]) -> set[str]:
    """Names that the config's constructor knows, or maps to others."""
    known = set(inspect.signature(config_class).parameters) | set(config_class.attribute_map)
    return known - {"kwargs"}
