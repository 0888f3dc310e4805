# SPDX-License-Identifier: Apache-2.0
"""What pods mount for metrics of the user: sources, files of tasks, and folders of the store instead of the
store.
"""

from collections.abc import Mapping

from finetune_operator.api.evaluation_metrics import CustomMetric, EvaluationTask
from finetune_operator.manifests.volumes import Location, Volumes, join_volumes, one_volume
from finetune_operator.plan import Manifest
from finetune_trainer.contract.environment import (
    CUSTOM_METRIC_FILE,
    CUSTOM_METRICS_MOUNT,
    DATASET_MOUNT,
    PREDICTIONS_MOUNT,
    TASKS_MOUNT,
)
from finetune_trainer.contract.own_metrics import CustomMetric as MountedMetric
from finetune_trainer.contract.own_metrics import EvaluationTask as MountedTask
from finetune_trainer.contract.own_metrics import EvaluationTaskFields


def mount_metrics(
    metrics: tuple[CustomMetric, ...], digests: Mapping[str, str] | None = None
) -> tuple[MountedMetric, ...]:
    """The metrics as a pod finds them.

    Args:
        metrics: those of the spec.
        digests: digest of each source as it was recorded; None before that.
    """
    return tuple(
        MountedMetric(
            name=metric.name,
            path=f"{_metric_folder(metric)}/{CUSTOM_METRIC_FILE}",
            function=metric.function,
            digest=(digests or {}).get(metric.name),
        )
        for metric in metrics
    )


def source_volumes(metrics: tuple[CustomMetric, ...]) -> Volumes:
    """Volumes with the sources."""
    return join_volumes(
        one_volume(
            f"custom-metric-{index}",
            _config_map(metric.config_map_ref.name, metric.config_map_ref.key),
            _metric_folder(metric),
        )
        for index, metric in enumerate(metrics)
    )


def _config_map(name: str, key: str | None = None) -> Manifest:
    """Optional: the pod starts without it, and its result reports what is missing."""
    items = {} if key is None else {"items": [{"key": key, "path": CUSTOM_METRIC_FILE}]}
    return {"configMap": {"name": name, **items, "optional": True}}


def mount_tasks(
    tasks: tuple[EvaluationTask, ...], digests: Mapping[str, str] | None = None
) -> tuple[MountedTask, ...]:
    """The tasks as a pod finds them.

    Args:
        tasks: those of the spec.
        digests: digest of the files of each as it was recorded; None before that.
    """
    return tuple(
        MountedTask(
            name=task.name,
            folder=_task_folder(task),
            file=task.config_map_ref.key,
            digest=(digests or {}).get(task.name),
            **{name: getattr(task, name) for name in EvaluationTaskFields.model_fields},
        )
        for task in tasks
    )


def task_volumes(tasks: tuple[EvaluationTask, ...]) -> Volumes:
    """Volumes with the files."""
    return join_volumes(
        one_volume(f"task-{index}", _config_map(task.config_map_ref.name), _task_folder(task))
        for index, task in enumerate(tasks)
    )


def folder_volumes(store: Location, run: str, dataset: str) -> Volumes:
    """The claim of a store, of which only two folders are mounted.

    Args:
        store: the claim, and the folder of the store in it.
        run: folder of the run in the store.
        dataset: digest of the dataset.
    """
    return Volumes(
        ({"name": "store", "persistentVolumeClaim": {"claimName": store.name}},),
        tuple(
            {"name": "store", "mountPath": mount, "subPath": _beneath(store, key), "readOnly": True}
            for mount, key in (
                (PREDICTIONS_MOUNT, f"runs/{run}/evaluate"),
                (DATASET_MOUNT, f"datasets/{dataset.removeprefix('sha256:')}"),
            )
        ),
    )


def _beneath(store: Location, key: str) -> str:
    return f"{store.path}/{key}" if store.path else key


def _metric_folder(metric: CustomMetric) -> str:
    return f"{CUSTOM_METRICS_MOUNT}/{metric.name}"


def _task_folder(task: EvaluationTask) -> str:
    return f"{TASKS_MOUNT}/{task.name}"
