# SPDX-License-Identifier: Apache-2.0
"""Custom metrics: functions of the user, which run in pods without network and without the store."""

from typing import Final

from finetune_operator.api.evaluation import EvaluationSettings
from finetune_operator.api.evaluation_metrics import CustomMetric, CustomMetricSource
from finetune_operator.api.labels import RUN, STAGE
from finetune_operator.api.meta import Resource
from finetune_operator.manifests.labels import stage_object_name
from finetune_operator.manifests.network_policies import build_isolation
from finetune_operator.manifests.volumes import (
    Location,
    Volumes,
    config_map_source,
    join_volumes,
    one_volume,
    parse_store,
)
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.features.feature import (
    EVALUATION_STAGES,
    EvaluationFeature,
    FeatureUse,
    Permission,
)
from finetune_operator.reconcile.passes import Blocked, Failed
from finetune_operator.stage_table import STAGES, JobStage
from finetune_operator.status.reasons import Reason
from finetune_trainer.contract.environment import (
    CUSTOM_METRIC_FILE,
    CUSTOM_METRICS_MOUNT,
    DATASET_MOUNT,
    PREDICTIONS_MOUNT,
)
from finetune_trainer.contract.own_metrics import CustomMetric as MountedMetric
from finetune_trainer.contract.vocabulary import Stage

SCORE: Final[Stage] = "score"


def _config(use: FeatureUse) -> tuple[MountedMetric, ...]:
    """The metrics as a pod finds them."""
    return tuple(
        MountedMetric(
            name=metric.name,
            path=f"{_folder(metric)}/{CUSTOM_METRIC_FILE}",
            function=metric.function,
            digest=use.digests.get(metric.name),
        )
        for metric in use.settings.custom_metrics
    )


def _volumes(settings: EvaluationSettings) -> Volumes:
    """The sources."""
    return join_volumes(
        one_volume(
            f"custom-metric-{index}",
            config_map_source(reference.name, items=[{"key": reference.key, "path": CUSTOM_METRIC_FILE}]),
            _folder(metric),
        )
        for index, metric in enumerate(settings.custom_metrics)
        for reference in (metric.config_map_ref,)
    )


def _folder(metric: CustomMetric) -> str:
    return f"{CUSTOM_METRICS_MOUNT}/{metric.name}"


def _refuse(permission: Permission) -> Failed | Blocked | None:
    if not permission.settings.custom_metrics:
        return None
    if parse_store(permission.store) is None:
        return Failed(
            Reason.INVALID_SPEC,
            f"{permission.field}.customMetrics needs a store on a claim: its pod has no network to read"
            f" {permission.store}. Remove customMetrics, or use a pvc:// store",
        )
    field = f"{permission.field}.customMetrics"
    if permission.profile.spec.allow.custom_code:
        return None
    return Blocked(
        Reason.CUSTOM_CODE_NOT_ALLOWED,
        f"ComputeProfile {permission.profile.name} does not allow {field}: ask the platform team"
        " to set its allow.customCode to true, or leave customMetrics out of a new object",
        requeue_after=None,
    )


FEATURE: Final = EvaluationFeature(
    field="custom_metrics",
    config=_config,
    stages=EVALUATION_STAGES | {SCORE},
    volumes=_volumes,
    source=CustomMetricSource,
    refuse=_refuse,
)


def scored_folders(stage: JobStage, store: str, run: str, dataset: str | None) -> Volumes | None:
    """What a pod without the store mounts in place of it; None for other stages.

    Args:
        stage: the stage of the pod.
        store: URI of the store. A bucket has no folders to mount, and is refused.
        run: folder of the results under `runs/`.
        dataset: digest of the measured rows.
    """
    claim = parse_store(store) if STAGES[stage].isolated else None
    return None if claim is None or dataset is None else folder_volumes(claim, run, dataset)


def folder_volumes(store: Location, run: str, dataset: str) -> Volumes:
    """The claim of a store, of which only the answers of a run and the rows of a dataset are mounted."""
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


def build_stage_isolation(owner: Resource, stage: JobStage) -> Manifest | None:
    """The NetworkPolicy of a stage that runs code of a user; None for other stages."""
    if not STAGES[stage].isolated:
        return None
    return build_isolation(owner, stage_object_name(owner, stage), {RUN: owner.uid, STAGE: stage})
