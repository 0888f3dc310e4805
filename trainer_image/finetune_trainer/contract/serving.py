# SPDX-License-Identifier: Apache-2.0
"""Settings of a server that the API shares, and the names of the engine's reasoning parsers."""

from typing import Annotated, Final, Literal

from pydantic import BaseModel, Field

from finetune_trainer.contract.base import SharedPart

EngineName = Literal["VLLM", "Transformers"]
"""Engine of an endpoint. Transformers is that of the trainer image."""
REASONING_PARSERS: Final = ("openai_gptoss", "muse_glimmer", "gemma4", "glm45", "deepseek_r1", "qwen3")
"""Parsers of the built-in engine, with the names that vLLM has for them."""


class DefaultSamplingFields(BaseModel):
    """Sampling parameters of requests that do not set them, named as in the OpenAI API."""

    temperature: Annotated[
        float | None, Field(ge=0, le=2, description="Sampling temperature; 0 for greedy answers. Default: 1.")
    ] = None
    top_p: Annotated[
        float | None,
        Field(
            gt=0,
            le=1,
            description="Nucleus sampling: share of the probability of the tokens that are considered."
            " Default: 1.",
        ),
    ] = None


class DefaultSampling(DefaultSamplingFields, SharedPart):
    """Sampling parameters of requests that do not set them."""
