# SPDX-License-Identifier: Apache-2.0
"""The tasks of general ability that a run evaluates: built from the files that its pod mounts."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_trainer.contract.own_metrics import EvaluationTask, EvaluationTaskSource
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.runtime.failure import StageFailure

if TYPE_CHECKING:
    from finetune_trainer.scoring.tasks.harness import HarnessTask


def open_tasks(tasks: Sequence[EvaluationTask]) -> "list[HarnessTask]":
    """The tasks with their rows and prompts.

    Raises StageFailure (INVALID_CONFIG) for a task that cannot be used, and for one whose files have changed
    since the run started.
    """
    return [_open(task) for task in tasks]


def task_sources(
    tasks: Sequence[EvaluationTask], opened: "Sequence[HarnessTask]"
) -> tuple[EvaluationTaskSource, ...]:
    """What a result records of the tasks that `open_tasks` has opened."""
    return tuple(
        EvaluationTaskSource(name=wanted.name, digest=task.source.digest, rows=task.rows)
        for wanted, task in zip(tasks, opened, strict=True)
    )


def _open(wanted: EvaluationTask) -> "HarnessTask":
    # The library takes a second to import, and most runs have no tasks.
    from finetune_trainer.scoring.tasks.harness import HarnessTask
    from finetune_trainer.scoring.tasks.taskfile import TaskFileError
    from finetune_trainer.scoring.tasks.tasksource import read_source

    try:
        source = read_source(Path(wanted.folder), wanted.file)
        task = HarnessTask(source, wanted)
    except TaskFileError as error:
        raise _failure(wanted, str(error)) from error
    if wanted.digest not in (None, source.digest):
        raise _failure(
            wanted,
            f"its files have changed since the run started: they were {wanted.digest} and are"
            f" {source.digest}. Restore them, or create a new run",
        )
    return task


def _failure(task: EvaluationTask, problem: str) -> StageFailure:
    return StageFailure(FailureReason.INVALID_CONFIG, f"evaluation.tasks: {task.name}: {problem}")
