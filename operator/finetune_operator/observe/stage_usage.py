# SPDX-License-Identifier: Apache-2.0
"""Device time of a stage over all its pods: requested, held, used and lost.

How long the pods of a Job waited for a node, started, and waited for each other.

From timestamps of the Job and its pods alone. A pod holds its devices from its scheduling to its end.

Device time of a stage, over all its pods: requested, held, used and lost.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
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
from finetune_operator.observe.device_usage import devices_per_pod
from finetune_operator.observe.pod_status import (
    condition,
    has_condition,
    has_ended,
    index_of,
    nodes_of,
    parse_time,
    running_span,
)
from finetune_operator.observe.pod_termination import add_ended_pods
from finetune_operator.plan import Manifest
from finetune_trainer.contract.vocabulary import Stage


@dataclass(frozen=True, slots=True)
class Window:
    """The time after `after` up to `until`; from the beginning if `after` is None."""

    after: datetime | None
    until: datetime

    def seconds(self, start: datetime, end: datetime) -> float:
        """Seconds from `start` to `end` that are in the window."""
        begin = start if self.after is None else max(start, self.after)
        return max(0.0, (min(end, self.until) - begin).total_seconds())


@dataclass(frozen=True, slots=True)
class PodSeconds:
    """Seconds, summed over pods."""

    queued: float
    """From the request of a pod to its scheduling."""
    starting: float
    """From its scheduling to the start of its container."""
    waiting_for_peers: float
    """From the start of its container to that of its last peer."""


@dataclass(frozen=True, slots=True)
class _PodTimes:
    index: int
    created: datetime
    requested: datetime
    scheduled: datetime | None
    started: datetime | None
    ended: datetime
    """The time of the pass if it has not ended."""


def pod_seconds(job: Manifest, pods: Iterable[Manifest], window: Window, now: datetime) -> PodSeconds:
    """The seconds of the Job's pods that are in the window.

    The first pod of each index is requested with the Job; after a queue has stopped and admitted the Job
    again, from the time that was counted last. A pod that replaces another one is requested when it is
    created.
    """
    times = list(_times(job, sorted(pods, key=_created), now))
    nodes = nodes_of(job)
    return PodSeconds(
        queued=sum(window.seconds(pod.requested, pod.scheduled or pod.ended) for pod in times),
        starting=sum(
            window.seconds(pod.scheduled, pod.started or pod.ended)
            for pod in times
            if pod.scheduled is not None
        ),
        waiting_for_peers=sum(
            window.seconds(pod.started, _joined_at(pod, pod.started, times, nodes))
            for pod in times
            if pod.started is not None
        ),
    )


def _times(job: Manifest, pods: list[Manifest], now: datetime) -> Iterator[_PodTimes]:
    begun = parse_time(job["metadata"]["creationTimestamp"])
    is_admitted = has_condition(job, "Suspended", "False")
    admitted = parse_time((condition(job, "Suspended") or {})["lastTransitionTime"]) if is_admitted else begun
    indexes: set[int] = set()
    for pod in pods:
        index, created = index_of(pod) or 0, _created(pod)
        is_first = created >= admitted and index not in indexes
        if created >= admitted:
            indexes.add(index)
        span, scheduled = running_span(pod, now), _scheduled_at(pod)
        if span is not None:
            scheduled = min(scheduled or span[0], span[0])
        yield _PodTimes(
            index=index,
            created=created,
            requested=begun if is_first else created,
            scheduled=scheduled,
            started=None if span is None else span[0],
            ended=_ended_at(pod, now) if span is None else span[1],
        )


def _joined_at(pod: _PodTimes, started: datetime, times: list[_PodTimes], nodes: int) -> datetime:
    """Start of the last peer of a started pod; the pod's end if one never started.

    A peer counts only if its pods show that it had not started before: a pod that replaces a deleted one was
    perhaps created after both had trained.
    """
    joined = started
    for index in range(nodes):
        if index == pod.index:
            continue
        peers = [peer for peer in times if peer.index == index]
        had_ended = any(peer.ended <= started for peer in peers)
        waited_for = [
            peer for peer in peers if peer.ended > started and (had_ended or peer.created <= started)
        ]
        if waited_for:
            starts = (peer.started for peer in waited_for if peer.started is not None)
            joined = max(joined, min(starts, default=pod.ended))
    return min(joined, pod.ended)


def _created(pod: Manifest) -> datetime:
    return parse_time(pod["metadata"]["creationTimestamp"])


def _scheduled_at(pod: Manifest) -> datetime | None:
    at = (condition(pod, "PodScheduled") or {}).get("lastTransitionTime")
    return parse_time(at) if at and has_condition(pod, "PodScheduled", "True") else None


def _ended_at(pod: Manifest, now: datetime) -> datetime:
    """End of a pod whose container never started: the last change of its conditions."""
    if not has_ended(pod):
        return now
    changes = (each.get("lastTransitionTime") for each in pod["status"].get("conditions") or ())
    return max((parse_time(at) for at in changes if at), default=_created(pod))


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
            "seconds": old.seconds + sum(window.seconds(*span) for span in _merge_spans(spans)),
            "queued_device_seconds": _total(old.queued_device_seconds, times.queued * devices),
            "starting_device_seconds": _total(old.starting_device_seconds, times.starting * devices),
            "device_seconds": old.device_seconds + sum(window.seconds(*span) for span in spans) * devices,
            "lost": add_lost(old.lost, "Waiting", waiting),
            "until": window.until,
            "ended": (add_ended_pods(old.ended or (), pods) or None) if devices else None,
        }
    )


def _total(before: float | None, seconds: float) -> float | None:
    """The sum; None if it is 0, as before the first second."""
    return round((before or 0) + seconds, 3) or None


def _merge_spans(spans: Iterable[tuple[datetime, datetime]]) -> list[tuple[datetime, datetime]]:
    """Merge overlapping spans."""
    merged: list[tuple[datetime, datetime]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], end)
        else:
            merged.append((start, end))
    return merged


def finish_stage(usage: StageUsage | None, stage: Stage) -> StageStatus:
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


def add_lost(
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
            total = add_lost(total, each.cause, each.device_seconds)
    return total


def open_device_seconds(times: StageTimes) -> float:
    """Device seconds that the stage's pods held and that have no cause of loss."""
    held = (times.starting_device_seconds or 0) + times.device_seconds
    return max(0.0, held - sum(each.device_seconds for each in times.lost or ()))
