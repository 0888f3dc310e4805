# SPDX-License-Identifier: Apache-2.0
"""Rollout strategies in numbers: the limits of a rolling update, and the steps of a canary."""

from dataclasses import dataclass
from typing import Self

from finetune_operator.api.rollout_analysis import StepAnalysis
from finetune_operator.api.rollout_strategy import CanaryStep, Pause, RollingUpdate
from finetune_operator.reconcile.inferencedeployment.traffic import ALL


@dataclass(frozen=True, slots=True)
class RollingLimits:
    """The limits of `strategy.rollingUpdate`, as in a Deployment.

    Attributes:
        replicas: desired replicas of the endpoint.
        surge: number of replicas that it may have in addition.
        unavailable: number of ready replicas that it may lack.
    """

    replicas: int
    surge: int
    unavailable: int

    @classmethod
    def of(cls, settings: RollingUpdate, replicas: int) -> Self:
        """The limits as numbers. If both percents give 0, one replica may be unavailable."""
        surge = _number(settings.max_surge, replicas, rounded_up=True)
        unavailable = _number(settings.max_unavailable, replicas, rounded_up=False)
        return cls(replicas, surge, unavailable if surge or unavailable else 1)

    def started(self, before: int, others: int) -> int:
        """Replicas of the new revision.

        Args:
            before: its replicas before.
            others: pods of other revisions that have not ended. A terminating pod still has its devices.
        """
        return min(self.replicas, max(before, self.replicas + self.surge - others))

    def kept(self, ready: int) -> int:
        """Replicas of the old revision while the new one has this many ready ones."""
        return max(0, self.replicas - self.unavailable - ready)


def _number(limit: int | str, replicas: int, *, rounded_up: bool) -> int:
    if isinstance(limit, int):
        return limit
    hundredths = int(limit.removesuffix("%")) * replicas
    return -(-hundredths // ALL) if rounded_up else hundredths // ALL


@dataclass(frozen=True, slots=True)
class CanarySteps:
    """Steps of the strategy for an endpoint with this number of replicas.

    The pods of both revisions are behind one Service, so the weight of a revision is its share of the
    replicas. Steps are counted from 0. After the last one the new revision gets all replicas.
    """

    steps: tuple[CanaryStep, ...]
    replicas: int
    is_coarse: bool
    """Whether a weight below that of one replica is rounded up to it."""

    @property
    def end(self) -> int:
        """The index after the last step."""
        return len(self.steps)

    def replicas_at(self, step: int) -> int:
        """Replicas of the new revision while it is at this step."""
        return self.replicas if step >= self.end else self._replicas_of(self._asked_at(step))

    def shared_at(self, step: int) -> int:
        """Replicas that the new revision takes over from the old one, which keeps at least one."""
        return min(self._replicas_of(self._asked_at(min(step, self.end - 1))), self.replicas - 1)

    def weight_at(self, step: int) -> int:
        """Percent of the requests that the replicas of this step get, rounded down."""
        replicas = self.replicas_at(step)
        return ALL * replicas // (replicas + self.replicas - self.shared_at(step))

    def pause_at(self, step: int) -> Pause | None:
        """The pause of this step; None if it does not pause."""
        return self.steps[step].pause if step < self.end else None

    def analysis_at(self, step: int) -> StepAnalysis | None:
        """What this step measures; None if it measures nothing."""
        return self.steps[step].analysis if step < self.end else None

    @property
    def needed_replicas(self) -> int | None:
        """Replicas with which each weight would be that of at least one replica; None if these do."""
        weights = [step.set_weight for step in self.steps if step.set_weight is not None]
        if self.is_coarse or all(self.replicas * weight >= ALL for weight in weights):
            return None
        return -(-ALL // min(weights))

    def _asked_at(self, step: int) -> int:
        weights = [each.set_weight for each in self.steps[: step + 1] if each.set_weight is not None]
        return weights[-1] if weights else 0

    def _replicas_of(self, weight: int) -> int:
        return max(self.replicas * weight // ALL, 1)


@dataclass(frozen=True, slots=True)
class RoutedSteps(CanarySteps):
    """Steps of an endpoint whose gateway routes exact weights. The old revision keeps all replicas."""

    @property
    def needed_replicas(self) -> None:
        """Every number of replicas can have every weight."""

    def shared_at(self, step: int) -> int:  # noqa: ARG002 - of the base class
        """The new revision takes over no replicas."""
        return 0

    def weight_at(self, step: int) -> int:
        """Percent of the requests that the step asks for."""
        return self._asked_at(step)

    def _replicas_of(self, weight: int) -> int:
        return max(-(-self.replicas * weight // ALL), 1)
