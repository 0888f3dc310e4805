# SPDX-License-Identifier: Apache-2.0
"""What an endpoint's route means for the end of a pass: its state, and the time of the next pass."""

from datetime import datetime
from typing import Final

from finetune_operator.api.meta import Condition
from finetune_operator.observe.endpoint_health import EndpointHealth
from finetune_operator.reconcile.steps import Blocked, Done, Halt, Working
from finetune_operator.status.conditions import find
from finetune_operator.status.reasons import ConditionType

FIRST_RECHECK_SECONDS: Final = 1.0
RECHECK_SECONDS: Final = 30.0
"""Bounds of the time between two reads of a route, which is not watched.

While a gateway has not accepted the route, the time is a quarter of the time waited so far.
"""


def unless_unrouted(halt: Halt, routing: EndpointHealth | None) -> Halt:
    """The end of the pass: an endpoint whose gateways do not route to it is not Ready."""
    if routing is None or routing.status == "True" or not isinstance(halt, Done):
        return halt
    if routing.status == "False":
        return Blocked(routing.reason, routing.message, halt.requeue_after)
    return Working(routing.reason, routing.message, halt.requeue_after)


def recheck_seconds(conditions: tuple[Condition, ...], now: datetime) -> float | None:
    """Seconds until the route must be read again; None if there is none."""
    routing = find(conditions, ConditionType.ROUTE_ACCEPTED)
    if routing is None:
        return None
    waited = (now - routing.last_transition_time).total_seconds()
    is_accepted = routing.status == "True"
    return RECHECK_SECONDS if is_accepted else min(max(waited / 4, FIRST_RECHECK_SECONDS), RECHECK_SECONDS)


def earliest(*seconds: float | None) -> float | None:
    """The smallest time; None if there is none."""
    return min((each for each in seconds if each is not None), default=None)
