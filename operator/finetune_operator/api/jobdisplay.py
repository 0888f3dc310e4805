# SPDX-License-Identifier: Apache-2.0
"""Text that kubectl shows of a FineTuneJob."""

from typing import Annotated

from pydantic import Field

from finetune_operator.api.meta import Model


class JobDisplay(Model):
    """Text for kubectl get and kubectl describe. Programs must not read it."""

    progress: Annotated[str | None, Field(description="Current stage, percent and steps.")] = None
    loss: Annotated[str | None, Field(description="Training loss.")] = None
    score: Annotated[
        str | None, Field(description="First score of the tuned model, and that of the base model.")
    ] = None
    evaluation: Annotated[
        tuple[Annotated[str, Field(max_length=160)], ...] | None,
        Field(max_length=21, description="Table of the scores, with 95 % intervals, for kubectl describe."),
    ] = None
    eta: Annotated[str | None, Field(description="Estimated time until the current stage ends.")] = None
    predicted: Annotated[
        str | None, Field(description="Predicted duration, device memory and cost of training.")
    ] = None
    took: Annotated[str | None, Field(description="The same three figures as measured.")] = None
