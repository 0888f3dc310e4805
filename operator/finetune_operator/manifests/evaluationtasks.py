# SPDX-License-Identifier: Apache-2.0
"""What pods mount for tasks of general ability: the whole ConfigMap of each."""

from collections.abc import Mapping

from finetune_operator.api.evaluation import EvaluationSettings, EvaluationSpec
from finetune_operator.api.evaluationtask import EvaluationTask
from finetune_operator.plan import Manifest
from finetune_trainer.contract.environment import TASKS_MOUNT
from finetune_trainer.contract.evaluationtask import EvaluationTask as MountedTask
from finetune_trainer.contract.evaluationtask import EvaluationTaskFields


def tasks_of(evaluation: EvaluationSettings | None) -> tuple[EvaluationTask, ...]:
    """The tasks of an evaluation; an Evaluation has none."""
    return evaluation.tasks if isinstance(evaluation, EvaluationSpec) else ()


def mounted_tasks(
    tasks: tuple[EvaluationTask, ...], digests: Mapping[str, str] | None = None
) -> tuple[MountedTask, ...]:
    """The tasks as a pod finds them.

    Args:
        tasks: those of the spec.
        digests: digest of the files of each when the run started; None before that.
    """
    return tuple(
        MountedTask(
            name=task.name,
            folder=_folder(task),
            file=task.config_map_ref.key,
            digest=(digests or {}).get(task.name),
            **{name: getattr(task, name) for name in EvaluationTaskFields.model_fields},
        )
        for task in tasks
    )


def task_volumes(tasks: tuple[EvaluationTask, ...]) -> tuple[list[Manifest], list[Manifest]]:
    """Volumes with the files, and their mounts."""
    volumes, mounts = [], []
    for index, task in enumerate(tasks):
        name = f"task-{index}"
        # Optional: the pod starts without it, and its result reports what is missing.
        volumes.append({"name": name, "configMap": {"name": task.config_map_ref.name, "optional": True}})
        mounts.append({"name": name, "mountPath": _folder(task), "readOnly": True})
    return volumes, mounts


def _folder(task: EvaluationTask) -> str:
    return f"{TASKS_MOUNT}/{task.name}"
