# SPDX-License-Identifier: Apache-2.0
"""Images of pods."""

from typing import Annotated

from pydantic import Field

from finetune_operator.api.meta import Model

ImageName = Annotated[str, Field(min_length=1, max_length=512)]


class Images(Model):
    """Images that replace the operator's defaults."""

    trainer: Annotated[
        ImageName | None,
        Field(description="Image of the pods of runs and endpoints. Default: the operator's trainer image."),
    ] = None
    engine: Annotated[
        ImageName | None,
        Field(
            description="Image of the engine VLLM, for example of vllm/vllm-openai by digest. Required for"
            " engine: VLLM; no effect otherwise."
        ),
    ] = None
