# SPDX-License-Identifier: Apache-2.0
"""General ability: tasks of lm-evaluation-harness, whose files are in ConfigMaps."""

from typing import Annotated

from pydantic import Field

from finetune_operator.api.custommetric import ConfigMapKey, own_name
from finetune_operator.api.meta import Digest, Model
from finetune_trainer.contract.evaluationtask import MAX_TASKS, EvaluationTaskFields


class EvaluationTask(EvaluationTaskFields, Model):
    """A task of lm-evaluation-harness. Its metric is `task/` and the name."""

    name: Annotated[
        str, own_name("Name of the task. Results and gates call its metric task/NAME.", "science")
    ]
    config_map_ref: Annotated[
        ConfigMapKey,
        Field(
            description="Task file in YAML. The files of its rows, which dataset_kwargs.data_files names, are"
            " other keys of the same ConfigMap: JSON lines, also compressed with gzip. Their SHA-256 is"
            " recorded when the run starts; if they change before the evaluation starts, the run fails."
        ),
    ]


class EvaluationTaskSource(Model):
    """Files of a task when the run started."""

    name: Annotated[str, Field(max_length=40, description="Name of the task.")]
    digest: Annotated[Digest, Field(description="SHA-256 of the task file and the files of its rows.")]
    rows: Annotated[int, Field(ge=1, description="Number of rows that each model is measured on.")]


EvaluationTaskSources = Annotated[
    tuple[EvaluationTaskSource, ...], Field(max_length=MAX_TASKS, description="Files of evaluation.tasks.")
]
"""In the status of a run."""
