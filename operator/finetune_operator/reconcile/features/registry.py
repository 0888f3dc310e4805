# SPDX-License-Identifier: Apache-2.0
"""The features of evaluations in one table, and what stages read from it."""

from typing import Any, Final

from finetune_operator.api.evaluation import EvaluationSettings
from finetune_operator.manifests.configs import FeatureFields
from finetune_operator.manifests.volumes import NO_VOLUMES, Volumes, join_volumes
from finetune_operator.reconcile.features import custom_metrics, judges, tasks
from finetune_operator.reconcile.features.feature import EvaluationFeature, FeatureUse, Permission
from finetune_operator.reconcile.passes import Blocked, Failed
from finetune_operator.reconcile.stages.stage_request import StagePass
from finetune_operator.stage_table import JobStage
from finetune_trainer.contract.results import EvaluateResult, PreflightResult

EVALUATION_FEATURES: Final[tuple[EvaluationFeature, ...]] = (
    custom_metrics.FEATURE,
    tasks.FEATURE,
    judges.FEATURE,
)
"""In the order of their volumes in a pod."""


def config_fields(
    stage: JobStage, settings: EvaluationSettings | None, resolved: Any, *, has_champion: bool = True
) -> FeatureFields:
    """The fields of a stage's config that belong to features; none without an evaluation.

    Args:
        stage: the stage.
        settings: the evaluation.
        resolved: `status.resolved` of its object, with the sources that were recorded.
        has_champion: whether there is a champion to compare with.
    """
    if settings is None:
        return {}
    return {
        feature.field: feature.config(FeatureUse(settings, feature.digests(resolved), has_champion))
        for feature in EVALUATION_FEATURES
        if stage in feature.stages
    }


def evaluation_volumes(stage: JobStage, settings: EvaluationSettings | None) -> Volumes:
    """What the pod of a stage mounts for the features of an evaluation."""
    if settings is None:
        return NO_VOLUMES
    return join_volumes(
        feature.volumes(settings) for feature in EVALUATION_FEATURES if stage in feature.stages
    )


def find_refusal(permission: Permission) -> Failed | Blocked | None:
    """Why the evaluation may not use one of its features; None if it may use all."""
    found = (feature.refuse(permission) for feature in EVALUATION_FEATURES)
    return next((refusal for refusal in found if refusal is not None), None)


def keep_sources(run: StagePass[Any], found: PreflightResult | EvaluateResult) -> None:
    """Record the sources of features by the first result that has them. Later Jobs use the same."""
    for feature in EVALUATION_FEATURES:
        if feature.source is not None:
            sources = (feature.source(**each.model_dump()) for each in getattr(found, feature.field))
            run.resolve(**{feature.field: tuple(sources) or None})
