# SPDX-License-Identifier: Apache-2.0
"""States and running times of the containers of a stage, and the price of their devices."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.api.meta import Model
from finetune_operator.api.stage_status import Cost
from finetune_operator.manifests.answerpod import ANSWER_CONTAINERS
from finetune_operator.manifests.podtemplate import CONTAINER
from finetune_operator.observe.podstatus import has_ended
from finetune_operator.plan import Manifest

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
"""The start that runtimes report of a container that they could not start."""
NOT_STARTED: Final = frozenset({"StartError", "ContainerCannotRun"})
"""Reasons of containers that ended without having run."""


def parse_time(text: str) -> datetime:
    """Parse a timestamp of the API server."""
    return datetime.fromisoformat(text)


def container_state(pod: Manifest) -> dict[str, Any]:
    """State of the trainer's container, not of containers that a platform injects.

    It has one of the keys `waiting`, `running` and `terminated`, or no key yet.
    """
    statuses = pod.get("status", {}).get("containerStatuses") or ()
    state: dict[str, Any] = next((s.get("state", {}) for s in statuses if s["name"] == CONTAINER), {})
    return state


def stage_states(pod: Manifest) -> list[dict[str, Any]]:
    """As `container_state`, of all containers of the stage, in the order in which they run."""
    statuses = pod.get("status", {}).get("initContainerStatuses") or ()
    before = [each.get("state", {}) for each in statuses if each["name"] in ANSWER_CONTAINERS]
    return [*before, container_state(pod)]


def container_span(state: Mapping[str, Any], pod: Manifest) -> tuple[datetime, datetime | None] | None:
    """Start and end of a container in this state. No end while it runs; None before it starts.

    The span is empty for a container that could not be started, and for one of a lost node, whose end is
    unknown. It begins after the creation of the pod, also if the clock of the node is behind.
    """
    part = state.get("running") or state.get("terminated") or {}
    if not part.get("startedAt"):
        return None
    started, created = parse_time(part["startedAt"]), parse_time(pod["metadata"]["creationTimestamp"])
    start = max(started, created)
    if not part.get("finishedAt"):
        return start, start if has_ended(pod) else None
    end = max(parse_time(part["finishedAt"]), created)
    has_run = part.get("reason") not in NOT_STARTED and started > EPOCH
    return start if has_run else end, end


def running_span(pod: Manifest, now: datetime) -> tuple[datetime, datetime] | None:
    """Start and end of the stage's containers, `now` if they run; None before the first one starts."""
    spans = [span for state in stage_states(pod) if (span := container_span(state, pod)) is not None]
    if not spans:
        return None
    start, end = spans[0][0], spans[-1][1]
    return start, now if end is None else end


class Price(Model):
    """Price of the devices of a ComputeProfile."""

    per_device_hour: float | None = None
    currency: str | None = None

    @classmethod
    def of(cls, profile: ComputeProfile | None) -> "Price":
        """The price of a profile; without an amount if it has none, or does not exist."""
        if profile is None:
            return cls()
        return cls(
            per_device_hour=profile.spec.cost.price_per_device_hour, currency=profile.spec.cost.currency
        )


def with_cost(cost: Cost | None, device_seconds: float, price: Price) -> Cost | None:
    """The cost after these additional device seconds.

    The currency is that of the first profile with a price. Device time of a profile without a price or with
    another currency counts in `deviceSeconds`, but not in `amount`.
    """
    if device_seconds <= 0:
        return cost
    old = cost or Cost(currency=price.currency)
    amount, currency = old.amount, old.currency
    if price.per_device_hour is not None and (amount is None or price.currency == currency):
        currency = price.currency
        amount = round((amount or 0) + device_seconds / 3600 * price.per_device_hour, 6)
    total = round(old.device_seconds + device_seconds, 3)
    return old.model_copy(update={"device_seconds": total, "amount": amount, "currency": currency})
