# SPDX-License-Identifier: Apache-2.0
"""Chains to run, with their disturbance and their operator."""

from dataclasses import dataclass

from finetune_operator.engine.watches import RELIST_SECONDS
from tests.faults.faults import Disturbance
from tests.faults.releases import Edit

PATIENCE_SECONDS = 120.0
"""Maximum duration of a step of a chain, even on a busy machine."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One chain.

    Attributes:
        disturbance: its disturbance; None for none.
        edits: edits of the operator's sources.
        patience_seconds: maximum duration of a step.
        relist_seconds: interval of the operator's lists, which compensate for lost events.
    """

    disturbance: Disturbance | None = None
    edits: tuple[Edit, ...] = ()
    patience_seconds: float = PATIENCE_SECONDS
    relist_seconds: int = RELIST_SECONDS

    def __str__(self) -> str:
        return str(self.disturbance)
