# SPDX-License-Identifier: Apache-2.0
"""What pods mount for metrics of the user: sources, files of tasks, and folders of the store instead of the
store.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from finetune_operator.api.evaluation_metrics import CustomMetric, EvaluationTask
from finetune_operator.api.pod_resources import PodResources
from finetune_operator.manifests.pod_sizing import SCRATCH_LIMIT, disk_volume
from finetune_operator.manifests.volumes import Location
from finetune_operator.plan import Manifest
from finetune_trainer.contract.environment import (
    CUSTOM_METRIC_FILE,
    CUSTOM_METRICS_MOUNT,
    DATASET_MOUNT,
    PREDICTIONS_MOUNT,
    SCRATCH_MOUNT,
    TASKS_MOUNT,
)
from finetune_trainer.contract.own_metrics import CustomMetric as MountedMetric
from finetune_trainer.contract.own_metrics import EvaluationTask as MountedTask
from finetune_trainer.contract.own_metrics import EvaluationTaskFields


@dataclass(frozen=True, slots=True)
class ScoredFolders:
    """Folders that a pod mounts in place of the store."""

    store: Location
    """The claim."""
    run: str
    """Folder of the run in the store."""
    dataset: str
    """Digest of the dataset."""


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


def source_volumes(metrics: tuple[CustomMetric, ...]) -> tuple[list[Manifest], list[Manifest]]:
    """Volumes with the sources, and their mounts."""
    volumes, mounts = [], []
    for index, metric in enumerate(metrics):
        name, reference = f"custom-metric-{index}", metric.config_map_ref
        items = [{"key": reference.key, "path": CUSTOM_METRIC_FILE}]
        # Optional: the pod starts without it, and its result reports what is missing.
        volumes.append(
            {"name": name, "configMap": {"name": reference.name, "items": items, "optional": True}}
        )
        mounts.append({"name": name, "mountPath": _metric_folder(metric), "readOnly": True})
    return volumes, mounts


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


def task_volumes(tasks: tuple[EvaluationTask, ...]) -> tuple[list[Manifest], list[Manifest]]:
    """Volumes with the files, and their mounts."""
    volumes, mounts = [], []
    for index, task in enumerate(tasks):
        name = f"task-{index}"
        # Optional: the pod starts without it, and its result reports what is missing.
        volumes.append({"name": name, "configMap": {"name": task.config_map_ref.name, "optional": True}})
        mounts.append({"name": name, "mountPath": _task_folder(task), "readOnly": True})
    return volumes, mounts


def folder_volumes(folders: ScoredFolders, resources: PodResources) -> tuple[list[Manifest], list[Manifest]]:
    """The claim of the store and an empty folder for temporary files, and their mounts."""
    claim = {"claimName": folders.store.name}
    volumes: list[Manifest] = [
        {"name": "store", "persistentVolumeClaim": claim},
        disk_volume("scratch", resources, SCRATCH_LIMIT),
    ]
    mounts: list[Manifest] = [
        {"name": "store", "mountPath": mount, "subPath": _beneath(folders.store, key), "readOnly": True}
        for mount, key in (
            (PREDICTIONS_MOUNT, f"runs/{folders.run}/evaluate"),
            (DATASET_MOUNT, f"datasets/{folders.dataset.removeprefix('sha256:')}"),
        )
    ]
    return volumes, [*mounts, {"name": "scratch", "mountPath": SCRATCH_MOUNT}]


def _beneath(store: Location, key: str) -> str:
    return f"{store.path}/{key}" if store.path else key


def _metric_folder(metric: CustomMetric) -> str:
    return f"{CUSTOM_METRICS_MOUNT}/{metric.name}"


def _task_folder(task: EvaluationTask) -> str:
    return f"{TASKS_MOUNT}/{task.name}"
