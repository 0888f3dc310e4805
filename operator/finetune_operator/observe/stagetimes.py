"""How long a stage queued and ran, from the timestamps of its Job and pods."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from finetune_operator.api.finetunejobstatus import Cost, StageStatus, StageUsage
from finetune_operator.api.meta import Model
from finetune_operator.manifests.labels import DEVICES, PROFILE
from finetune_operator.manifests.podtemplate import CONTAINER
from finetune_operator.plan import Manifest
from finetune_trainer.contract.vocabulary import Stage


def parse_time(text: str) -> datetime:
    """A timestamp of the API server."""
    return datetime.fromisoformat(text)


def container_state(pod: Manifest) -> dict[str, Any]:
    """The state of the trainer's container, whatever a platform injects beside it.

    Holds `waiting`, `running` or `terminated`, or nothing yet.
    """
    statuses = pod.get("status", {}).get("containerStatuses") or ()
    state: dict[str, Any] = next((s.get("state", {}) for s in statuses if s["name"] == CONTAINER), {})
    return state


def _span(pod: Manifest, now: datetime) -> tuple[datetime, datetime] | None:
    state = container_state(pod)
    ended = state.get("terminated", {})
    started = state.get("running", ended).get("startedAt")
    if started is None:
        return None
    finished = ended.get("finishedAt")
    return parse_time(started), parse_time(finished) if finished else now


def stage_usage(
    previous: StageUsage | None, stage: Stage, job: Manifest, pods: Iterable[Manifest], now: datetime
) -> StageUsage | None:
    """What the stage has used until now, in seconds; None as long as no container of it has started.

    Only time after `previous.until` is added, so looking twice counts once, and a pod that has disappeared
    keeps what was counted of it. Queued is from the Job's creation to its first container's start. Seconds
    are those in which any container ran; device seconds are of all containers: the time each ran, times the
    devices that its pod asked for.
    """
    usage = previous if previous is not None and previous.name == stage else None
    spans = [span for span in (_span(pod, now) for pod in pods) if span is not None]
    if not spans:
        return usage
    until = usage.until if usage is not None else None

    def after(start: datetime, end: datetime) -> float:
        return max(0.0, (end - (max(start, until) if until else start)).total_seconds())

    queued = after(parse_time(job["metadata"]["creationTimestamp"]), min(start for start, _ in spans))
    held = sum(after(start, end) for start, end in spans)
    labels = job["metadata"].get("labels", {})
    devices = int(labels.get(DEVICES, "0"))
    return StageUsage(
        name=stage,
        profile=labels.get(PROFILE),
        queued_seconds=(usage.queued_seconds if usage else 0) + queued,
        seconds=(usage.seconds if usage else 0) + sum(after(*span) for span in _apart(spans)),
        device_seconds=(usage.device_seconds if usage else 0) + held * devices,
        until=max(end for _, end in spans),
    )


def _apart(spans: list[tuple[datetime, datetime]]) -> list[tuple[datetime, datetime]]:
    """The same time without what several spans have in common."""
    apart: list[tuple[datetime, datetime]] = []
    for start, end in sorted(spans):
        if apart and start <= apart[-1][1]:
            apart[-1] = apart[-1][0], max(apart[-1][1], end)
        else:
            apart.append((start, end))
    return apart


def finished_stage(usage: StageUsage | None, stage: Stage) -> StageStatus:
    """The entry of a finished stage; without times where its pods had gone before anybody looked."""
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
    """What a profile asks for its devices."""

    per_device_hour: float | None = None
    currency: str | None = None


def with_cost(cost: Cost | None, device_seconds: float, price: Price) -> Cost | None:
    """The cost with so many more device seconds.

    Device time of a profile with another currency, or without a price, is in `deviceSeconds` and not in
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
