# SPDX-License-Identifier: Apache-2.0
"""General ability: tasks of lm-evaluation-harness whose files are in ConfigMaps."""

from typing import Annotated, Final

from pydantic import BaseModel, Field

from finetune_trainer.contract.base import Contract, Digest
from finetune_trainer.contract.metrics import TASK, Metric

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
    folder: str
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
