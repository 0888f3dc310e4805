# SPDX-License-Identifier: Apache-2.0
"""What a pass over the wanted revision writes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from finetune_operator.plan import Create, Event
from finetune_operator.reconcile.steps import Halt


@dataclass(frozen=True, slots=True)
class RolloutOutcome:
    """The end of a pass over the wanted revision."""

    halt: Halt
    create: tuple[Create, ...] = ()
    events: tuple[Event, ...] = ()
    status: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the endpoint's status that change."""
    weights: Mapping[str, int] | None = None
    """Percent of the requests by revision after this pass; None: unchanged."""
    keeps_wanted: bool = True
    """Whether the wanted revision keeps its Deployment."""
    entry: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the revision's entry in the status, besides name, state and specHash."""
