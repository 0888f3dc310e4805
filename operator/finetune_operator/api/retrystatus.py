"""Failures of a stage that end when the store or its credentials are mended, as a status counts them."""

from datetime import datetime
from typing import Annotated

from pydantic import Field

from finetune_operator.api.meta import Model
from finetune_trainer.contract.vocabulary import Stage


class RetryStatus(Model):
    """Failures in a row of a stage that is tried again; the wait before the next try grows with them."""

    stage: Annotated[Stage, Field(description="Stage that failed.")]
    failures: Annotated[
        int, Field(ge=1, description="Failures in a row, failed checks of the store included.")
    ]
    last_failure_at: Annotated[datetime, Field(description="End of the last attempt.")]
    reading: Annotated[
        bool | None, Field(description="The attempts were to read the result of the stage, which succeeded.")
    ] = None
