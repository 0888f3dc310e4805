# SPDX-License-Identifier: Apache-2.0
"""How long the pods of a Job waited for a node, started, and waited for each other.

From timestamps of the Job and its pods alone. A pod holds its devices from its scheduling to its end.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from finetune_operator.observe.peerpods import index_of, nodes_of
from finetune_operator.observe.podstatus import condition, has_condition, has_ended
from finetune_operator.observe.stagetimes import parse_time, running_span
from finetune_operator.plan import Manifest


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
