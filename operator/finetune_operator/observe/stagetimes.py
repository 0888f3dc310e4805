# SPDX-License-Identifier: Apache-2.0
"""States and running times of the containers of a stage, and the price of their devices."""

from datetime import datetime
from typing import Any

from finetune_operator.api.devicetime import Cost
from finetune_operator.api.meta import Model
from finetune_operator.manifests.answerpod import ANSWER_CONTAINERS
from finetune_operator.manifests.podtemplate import CONTAINER
from finetune_operator.plan import Manifest


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


def running_span(pod: Manifest, now: datetime) -> tuple[datetime, datetime] | None:
    """Start and end of the stage's containers, `now` if they run; None before the first one starts."""
    begun = [
        part
        for state in stage_states(pod)
        if (part := state.get("running", state.get("terminated", {}))).get("startedAt") is not None
    ]
    if not begun:
        return None
    finished = begun[-1].get("finishedAt")
    return parse_time(begun[0]["startedAt"]), parse_time(finished) if finished else now


class Price(Model):
    """Price of the devices of a ComputeProfile."""

    per_device_hour: float | None = None
    currency: str | None = None


def with_cost(cost: Cost | None, device_seconds: float, price: Price) -> Cost | None:
    """The cost after these additional device seconds.

    Device time of a profile without a price or with another currency counts in `deviceSeconds`, but not in
    `amount`.
    """
    if device_seconds <= 0:
        return cost
    old = cost or Cost(currency=price.currency)
    amount = old.amount
    if price.per_device_hour is not None and price.currency == old.currency:
        amount = round((amount or 0) + device_seconds / 3600 * price.per_device_hour, 6)
    total = round(old.device_seconds + device_seconds, 3)
    return old.model_copy(update={"device_seconds": total, "amount": amount})
