"""Queue time, run time and cost of a stage, from the timestamps of its Job and pods."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from finetune_operator.api.finetunejobstatus import Cost, StageStatus, StageUsage
from finetune_operator.api.meta import Model
from finetune_operator.manifests.answerpod import ANSWER_CONTAINERS
from finetune_operator.manifests.labels import DEVICES, PROFILE
from finetune_operator.manifests.podtemplate import CONTAINER
from finetune_operator.plan import Manifest
from finetune_trainer.contract.vocabulary import Stage


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


def _span(pod: Manifest, now: datetime) -> tuple[datetime, datetime] | None:
    begun = [
        part
        for state in stage_states(pod)
        if (part := state.get("running", state.get("terminated", {}))).get("startedAt") is not None
    ]
    if not begun:
        return None
    finished = begun[-1].get("finishedAt")
    return parse_time(begun[0]["startedAt"]), parse_time(finished) if finished else now


def stage_usage(
    previous: StageUsage | None, stage: Stage, job: Manifest, pods: Iterable[Manifest], now: datetime
) -> StageUsage | None:
    """The stage's usage until now; None before its first container starts.

    - Only time after `previous.until` is added, so a second pass counts nothing twice, and the time of a
      deleted pod stays counted.
    - `queued_seconds`: from the Job's creation to the start of its first container.
    - `seconds`: time in which at least one container ran.
    - `device_seconds`: for each container, the time it ran, multiplied by the devices of its pod.
    """
    usage = previous if previous is not None and previous.name == stage else None
    spans = [span for span in (_span(pod, now) for pod in pods) if span is not None]
    if not spans:
        return usage
    until = usage.until if usage is not None else None

    def after(start: datetime, end: datetime) -> float:
        return max(0.0, (end - (max(start, until) if until else start)).total_seconds())

    queued = after(parse_time(job["metadata"]["creationTimestamp"]), min(start for start, _ in spans))
    container_seconds = sum(after(start, end) for start, end in spans)
    labels = job["metadata"].get("labels", {})
    devices = int(labels.get(DEVICES, "0"))
    return StageUsage(
        name=stage,
        profile=labels.get(PROFILE),
        queued_seconds=(usage.queued_seconds if usage else 0) + queued,
        seconds=(usage.seconds if usage else 0) + sum(after(*span) for span in _merged(spans)),
        device_seconds=(usage.device_seconds if usage else 0) + container_seconds * devices,
        until=max(end for _, end in spans),
    )


def _merged(spans: list[tuple[datetime, datetime]]) -> list[tuple[datetime, datetime]]:
    """Merge overlapping spans."""
    merged: list[tuple[datetime, datetime]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], end)
        else:
            merged.append((start, end))
    return merged


def finished_stage(usage: StageUsage | None, stage: Stage) -> StageStatus:
    """The status entry of a finished stage; without times if its pods disappeared before the first pass."""
    if usage is None or usage.name != stage:
        return StageStatus(name=stage)
    return StageStatus(
        name=stage,
        profile=usage.profile,
        queued_seconds=round(usage.queued_seconds, 3),
        seconds=round(usage.seconds, 3),
        device_seconds=round(usage.device_seconds, 3),
    )


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
    return Cost(
        device_seconds=round(old.device_seconds + device_seconds, 3), amount=amount, currency=old.currency
    )
