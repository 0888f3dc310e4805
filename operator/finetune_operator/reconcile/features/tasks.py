# SPDX-License-Identifier: Apache-2.0
"""Tasks of general ability: their files, which the pods mount."""

from typing import Final

from finetune_operator.api.evaluation import EvaluationSettings
from finetune_operator.api.evaluation_metrics import EvaluationTask, EvaluationTaskSource
from finetune_operator.manifests.volumes import Volumes, config_map_source, join_volumes, one_volume
from finetune_operator.reconcile.features.feature import EvaluationFeature, FeatureUse
from finetune_trainer.contract.environment import TASKS_MOUNT
from finetune_trainer.contract.own_metrics import EvaluationTask as MountedTask
from finetune_trainer.contract.own_metrics import EvaluationTaskFields


def _config(use: FeatureUse) -> tuple[MountedTask, ...]:
    """The tasks as a pod finds them."""
    return tuple(
        MountedTask(
            name=task.name,
            folder=_folder(task),
            file=task.config_map_ref.key,
            digest=use.digests.get(task.name),
            **{name: getattr(task, name) for name in EvaluationTaskFields.model_fields},
        )
        for task in use.settings.tasks
    )


def _volumes(settings: EvaluationSettings) -> Volumes:
    return join_volumes(
        one_volume(f"task-{index}", config_map_source(task.config_map_ref.name), _folder(task))
        for index, task in enumerate(settings.tasks)
    )


def _folder(task: EvaluationTask) -> str:
    return f"{TASKS_MOUNT}/{task.name}"


FEATURE: Final = EvaluationFeature(
    field="tasks",
    config=_config,
    volumes=_volumes,
    source=EvaluationTaskSource,
)
