# SPDX-License-Identifier: Apache-2.0
"""What a feature of an evaluation is: an optional part of its spec, with what it adds to configs and pods."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.api.evaluation import EvaluationSettings
from finetune_operator.api.meta import Model
from finetune_operator.manifests.volumes import NO_VOLUMES, Volumes
from finetune_operator.reconcile.passes import Blocked, Failed
from finetune_operator.stage_table import JobStage
from finetune_trainer.contract.base import Contract

EVALUATION_STAGES: Final[frozenset[JobStage]] = frozenset({"preflight", "evaluate"})
"""Stages that check and measure what an evaluation has."""


@dataclass(frozen=True, slots=True)
class FeatureUse:
    """An evaluation as the config of a stage uses it."""

    settings: EvaluationSettings
    digests: Mapping[str, str] = field(default_factory=dict)
    """Digests of the feature's sources by name, as they were recorded; empty before that."""
    has_champion: bool = True
    """Whether there is a champion to compare with."""


@dataclass(frozen=True, slots=True)
class Permission:
    """What decides whether an evaluation may use a feature."""

    settings: EvaluationSettings
    field: str
    """Field with the settings, for messages, such as spec.evaluation."""
    store: str
    """URI of the store with the answers."""
    profile: ComputeProfile
    """ComputeProfile of the pods that evaluate."""


def _no_volumes(_settings: EvaluationSettings) -> Volumes:
    return NO_VOLUMES


def _permitted(_permission: Permission) -> None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationFeature:
    """What one part of an evaluation adds, with functions that do nothing by default."""

    field: str
    """Its field in `EvaluationSettings`, in the configs of its stages, and in results with sources."""
    config: Callable[[FeatureUse], tuple[Contract, ...]]
    """Builds the value of its field in a config."""
    stages: frozenset[JobStage] = EVALUATION_STAGES
    """Stages whose configs and pods have it."""
    volumes: Callable[[EvaluationSettings], Volumes] = _no_volumes
    """What its pods mount. Secrets are mounted because the config names them."""
    source: type[Model] | None = None
    """Record of a source in `status.resolved`, with `name` and `digest`. Later Jobs use the same sources."""
    refuse: Callable[[Permission], Failed | Blocked | None] = _permitted
    """Says why the evaluation may not use it; None if it may, or does not."""

    def digests(self, resolved: Any) -> dict[str, str]:
        """Digests of its sources in `status.resolved`, by name."""
        recorded = getattr(resolved, self.field) if self.source is not None else None
        return {source.name: source.digest for source in recorded or ()}
