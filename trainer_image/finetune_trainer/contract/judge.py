# SPDX-License-Identifier: Apache-2.0
"""Judges: models behind an endpoint of the user that compare two answers."""

from typing import Annotated, Final, Literal

from pydantic import BaseModel, Field

from finetune_trainer.contract.base import SharedPart
from finetune_trainer.contract.metrics import JUDGE, Metric
from finetune_trainer.contract.references import SecretMount

MAX_JUDGES: Final = 4
"""Their scores must fit into a termination message."""
CALLS_PER_ROW: Final = 2
"""Each pair of answers is shown in both orders."""

Opponent = Literal["Base", "Prompted", "Live", "Reference"]
"""Whose answers a judge compares with those of the tuned model: a subject, or the rows' own answers."""


class JudgeFields(BaseModel):
    """A judge, except where it is and how to sign in there."""

    model: Annotated[
        str, Field(min_length=1, max_length=253, description="Name of the model at the endpoint.")
    ]
    instructions: Annotated[
        str,
        Field(
            min_length=1,
            max_length=4096,
            description="What makes an answer better, as text for the judge. Name the task, and criteria in"
            " the order of their weight.",
        ),
    ]
    against: Annotated[
        Opponent,
        Field(
            description="Whose answers are compared with those of the tuned model. Base, Prompted and Live:"
            " those models, which are then measured. Reference: the answers in the rows."
        ),
    ] = "Base"
    max_calls: Annotated[
        int,
        Field(
            ge=2,
            le=20000,
            description="Max number of calls. A row takes two; if the split has more rows, a random sample"
            " of them is judged. Attempts that the endpoint refuses do not count.",
        ),
    ] = 1000
    temperature: Annotated[
        float,
        Field(
            ge=0,
            le=2,
            description="Sampling temperature of the judge. Models that accept only their default need 1.",
        ),
    ] = 0


class Judge(JudgeFields, SharedPart):
    """A judge, as a pod uses it."""

    name: str
    endpoint: str | None = None
    """URL under which `/chat/completions` is; None: the key `endpoint` of the credentials."""
    credentials: SecretMount | None = None

    @property
    def metric(self) -> Metric:
        """Its name in results and gates."""
        return f"{JUDGE}/{self.name}"
