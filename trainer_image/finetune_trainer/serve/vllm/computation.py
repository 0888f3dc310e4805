# SPDX-License-Identifier: Apache-2.0
"""How a vLLM server computes, and how much, which decides what can be compared and how exactly."""

from typing import Final

from starlette.applications import Starlette

from finetune_trainer.model.probe_record import Computation

UNKNOWN: Final = "unknown"


def computation_of(server: Starlette) -> Computation:
    """That of vLLM's application. Device and dtype are `UNKNOWN` if its version has its config elsewhere."""
    try:
        config = server.state.vllm_config
        return Computation(
            engine="VLLM",
            device=str(config.device_config.device_type),
            dtype=str(config.model_config.dtype).removeprefix("torch."),
            quantized=config.model_config.quantization is not None,
        )
    except AttributeError:
        return Computation("VLLM", UNKNOWN, UNKNOWN, quantized=False)


def max_prompt_tokens(server: Starlette) -> float:
    """Length of the longest prompt after which the server generates a token; infinite if it is not known."""
    try:
        return int(server.state.vllm_config.model_config.max_model_len) - 1
    except AttributeError:
        return float("inf")
