# SPDX-License-Identifier: Apache-2.0
"""Floating-point operations that a model needs to learn from a token, and the utilization of a device (MFU).

Operations that are computed again (gradient checkpointing) do not count, as in the literature:
https://arxiv.org/abs/2204.02311, appendix B.
"""

from collections.abc import Mapping
from typing import Any, Final

TERA: Final = 1e12
FORWARD: Final = 2
"""Operations per weight and token of a matrix product: a multiplication and an addition."""
PASSES: Final = {"Full": 3, "LoRA": 2, "QLoRA": 2}
"""Forward passes that a training pass is worth, for the products with weights: forward, the gradient of the
input, and for trained weights that of the weights. Products with adapters are not counted."""
ATTENTION_PASSES: Final = 3
"""The same for the products of attention, which have two inputs with gradients."""


def matrix_weights(config: Mapping[str, Any]) -> int:
    """Number of weights of a Llama that take part in matrix products, given the numbers of its config."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    keys = hidden // heads * config["num_key_value_heads"]
    layer = 2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * config["intermediate_size"]
    return int(config["num_hidden_layers"] * layer + hidden * config["vocab_size"])


def per_token(config: Mapping[str, Any], type_: str, mean_context: float) -> float:
    """Operations per token of a training pass.

    Args:
        config: numbers of the model's config.
        type_: the type of the method, of PASSES.
        mean_context: tokens that a token attends to, on average: half of the row for rows of one length.
    """
    weights: int = FORWARD * PASSES[type_] * matrix_weights(config)
    # Scores and their product with the values: two products of the hidden size for each token attended to.
    attention: float = 2 * FORWARD * config["hidden_size"] * config["num_hidden_layers"] * mean_context
    return weights + ATTENTION_PASSES * attention


def utilization(flops_per_token: float, tokens_per_second: float, peak_teraflops: float) -> float:
    """Share of the device's peak that the model's operations take."""
    return flops_per_token * tokens_per_second / (peak_teraflops * TERA)
