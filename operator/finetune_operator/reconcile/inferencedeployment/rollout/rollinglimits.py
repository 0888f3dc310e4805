# SPDX-License-Identifier: Apache-2.0
"""Limits of replicas while one revision replaces another one replica by replica."""

from dataclasses import dataclass
from typing import Self

from finetune_operator.api.rollout_strategy import RollingUpdate
from finetune_operator.reconcile.inferencedeployment.traffic.routing import ALL


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
