# SPDX-License-Identifier: Apache-2.0
"""Metrics that the user brings to an evaluation.

- Custom metrics: Python functions in ConfigMaps.
- Tasks of lm-evaluation-harness, which measure general ability. Their files are in ConfigMaps.
- Judges: models behind an endpoint of the user that compare two answers.
"""

from typing import Annotated, Final, Literal

from pydantic import BaseModel, Field

from finetune_trainer.contract.base import Contract, Digest, PodPath, SharedPart
from finetune_trainer.contract.metrics import CUSTOM, JUDGE, TASK, Metric
from finetune_trainer.contract.references import SecretMount

MAX_CUSTOM_METRICS: Final = 4
"""Their scores must fit into a termination message."""


class CustomMetric(Contract):
    """A function of the user, as a pod mounts it."""

    name: Annotated[str, Field(max_length=40)]
    path: PodPath
    """File with the source."""
    function: str = "metric"
    """Name of the function in the source. It takes a row and an answer, and returns a number."""
    digest: Digest | None = None
    """Digest of the source when the run started. None: the source is not known yet."""

    @property
    def metric(self) -> Metric:
        """Its name in results and gates."""
        return f"{CUSTOM}/{self.name}"


class CustomMetricSource(Contract):
    """The source of a metric, as it was when the run started."""

    name: str
    digest: Digest


MAX_TASKS: Final = 4
"""Their scores must fit into a termination message."""


class EvaluationTaskFields(BaseModel):
    """How a task is measured."""

    metric: Annotated[
        str | None,
        Field(
            max_length=63,
            description="Metric of the task file, for example acc_norm. After a comma, the name of one of"
            " its filters may follow, as in the results of lm-evaluation-harness. Default: the first metric"
            " and the first filter of the task file.",
        ),
    ] = None
    num_fewshot: Annotated[
        int | None,
        Field(
            ge=0,
            le=32,
            description="Number of examples before each question. Default: num_fewshot of the task file, or"
            " 0.",
        ),
    ] = None
    limit: Annotated[
        int | None,
        Field(ge=1, description="Measure only the first rows, this many. Default: all rows of the task."),
    ] = None


class EvaluationTask(EvaluationTaskFields, Contract):
    """A task as a pod mounts it."""

    name: Annotated[str, Field(max_length=40)]
    folder: PodPath
    """Folder with the task file and the files of its rows."""
    file: str
    """Name of the task file."""
    digest: Digest | None = None
    """Digest of the files when the run started. None: they are not known yet."""

    @property
    def metric_name(self) -> Metric:
        """Its name in results and gates."""
        return f"{TASK}/{self.name}"


class EvaluationTaskSource(Contract):
    """The files of a task, as they were when the run started."""

    name: str
    digest: Digest
    rows: int
    """Number of rows that are measured with each model."""


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
