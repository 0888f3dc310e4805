# SPDX-License-Identifier: Apache-2.0
"""Status of retries. They succeed once the store or its credentials are repaired."""

from datetime import datetime
from typing import Annotated

from pydantic import Field

from finetune_operator.api.meta import Model
from finetune_trainer.contract.vocabulary import Stage


class RetryStatus(Model):
    """Consecutive failures of a stage that the operator retries. The wait before the next attempt grows with
    their number. Absent: none."""

    stage: Annotated[Stage, Field(description="Stage that failed.")]
    failures: Annotated[
        int,
        Field(
            ge=1,
            description="Number of consecutive failures, including failed checks of the store; with gaveBack,"
            " of times that devices were given back.",
        ),
    ]
    last_failure_at: Annotated[datetime, Field(description="Time at which the last attempt ended.")]
    gave_back: Annotated[
        bool | None,
        Field(
            description="True if the stage did not fail: only some of its pods had devices, so it released"
            " them for an older run."
        ),
    ] = None
    reading: Annotated[
        bool | None,
        Field(description="True if the stage succeeded and the failed attempts were to read its result."),
    ] = None
