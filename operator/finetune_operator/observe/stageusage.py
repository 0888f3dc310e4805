# SPDX-License-Identifier: Apache-2.0
"""Device time of a stage, over all its pods: requested, held, used and lost."""

from collections.abc import Iterable
from datetime import datetime
from typing import TypeVar

from finetune_operator.api.stage_status import (
    LOST_CAUSES,
    LostCause,
    LostDeviceTime,
    StageStatus,
    StageTimes,
    StageUsage,
)
from finetune_operator.manifests.labels import PROFILE
from finetune_operator.observe.devicepods import devices_per_pod
from finetune_operator.observe.podends import with_ended
from finetune_operator.observe.podtimes import Window, pod_seconds
from finetune_operator.observe.stagetimes import parse_time, running_span
from finetune_operator.plan import Manifest
from finetune_trainer.contract.vocabulary import Stage

T = TypeVar("T", bound=StageTimes)


def stage_usage(
    previous: StageUsage | None, stage: Stage, job: Manifest, pods: list[Manifest], now: datetime
) -> StageUsage | None:
    """The stage's usage until now; None before its first container starts.

    Only time after `previous.until` is added, so a second pass counts nothing twice, and the time of a
    deleted pod stays counted. `StageTimes` describes the times.
    """
    usage = previous if previous is not None and previous.name == stage else None
    spans = [span for span in (running_span(pod, now) for pod in pods) if span is not None]
    if not spans:
        return usage
    labels = job["metadata"].get("labels", {})
    devices = devices_per_pod(job)
    after, until = usage.until if usage is not None else None, max(end for _, end in spans)
    window = Window(after, until if after is None else max(after, until))
    old = usage or StageUsage(name=stage, until=window.until)
    created = parse_time(job["metadata"]["creationTimestamp"])
    times = pod_seconds(job, pods, window, now)
    waiting = (times.starting + times.waiting_for_peers) * devices
    return old.model_copy(
        update={
            "profile": labels.get(PROFILE),
            "queued_seconds": old.queued_seconds + window.seconds(created, min(start for start, _ in spans)),
            "seconds": old.seconds + sum(window.seconds(*span) for span in _merged(spans)),
            "queued_device_seconds": _total(old.queued_device_seconds, times.queued * devices),
            "starting_device_seconds": _total(old.starting_device_seconds, times.starting * devices),
            "device_seconds": old.device_seconds + sum(window.seconds(*span) for span in spans) * devices,
            "lost": with_lost(old.lost, "Waiting", waiting),
            "until": window.until,
            "ended": (with_ended(old.ended or (), pods) or None) if devices else None,
        }
    )


def _total(before: float | None, seconds: float) -> float | None:
    """The sum; None if it is 0, as before the first second."""
    return round((before or 0) + seconds, 3) or None


def _merged(spans: Iterable[tuple[datetime, datetime]]) -> list[tuple[datetime, datetime]]:
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
        queued_device_seconds=usage.queued_device_seconds,
        starting_device_seconds=usage.starting_device_seconds,
        device_seconds=round(usage.device_seconds, 3),
        settled_device_seconds=usage.settled_device_seconds,
        lost=usage.lost,
    )


def with_lost(
    lost: tuple[LostDeviceTime, ...] | None, cause: LostCause, device_seconds: float
) -> tuple[LostDeviceTime, ...] | None:
    """The lost time with more of this cause, in the order of the causes; None if none is lost."""
    seconds = {each.cause: each.device_seconds for each in lost or ()}
    seconds[cause] = round(seconds.get(cause, 0) + device_seconds, 3)
    known = [each for each in LOST_CAUSES if each in seconds]
    of_newer_releases = [each for each in seconds if each not in LOST_CAUSES]
    entries = tuple(
        LostDeviceTime(cause=each, device_seconds=seconds[each])
        for each in (*known, *of_newer_releases)
        if seconds[each] > 0
    )
    return entries or None


def sum_lost(stages: Iterable[StageTimes]) -> tuple[LostDeviceTime, ...] | None:
    """The lost time of several stages, by cause; None if none is lost."""
    total: tuple[LostDeviceTime, ...] | None = None
    for times in stages:
        for each in times.lost or ():
            total = with_lost(total, each.cause, each.device_seconds)
    return total


def open_device_seconds(times: StageTimes) -> float:
    """Device seconds that the stage's pods held and that have no cause of loss."""
    held = (times.starting_device_seconds or 0) + times.device_seconds
    return max(0.0, held - sum(each.device_seconds for each in times.lost or ()))
