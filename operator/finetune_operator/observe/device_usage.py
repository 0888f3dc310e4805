# SPDX-License-Identifier: Apache-2.0
"""Use of devices by pods: which hold or wait for how many, when, and the device time of a stage.

A pod holds its devices from its scheduling to its end. How long the pods of a Job waited for a node, started,
and waited for each other follows from timestamps of the Job and its pods alone. The device time of a stage is
summed over all its pods: requested, held, used and lost.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction
from math import ceil
from typing import Any, Final, Literal, TypeVar

from finetune_operator.api.labels import PROFILE, STAGE
from finetune_operator.api.pod_resources import CPU, MAX_DEVICES, quantity_value
from finetune_operator.api.stage_status import (
    LOST_CAUSES,
    LostCause,
    LostDeviceTime,
    StageStatus,
    StageTimes,
    StageUsage,
)
from finetune_operator.manifests.endpoint import ENGINE_CONTAINER
from finetune_operator.manifests.labels import DEVICES
from finetune_operator.observe.pod_status import (
    condition,
    container_span,
    container_statuses,
    creation_time,
    has_condition,
    has_ended,
    index_of,
    nodes_of,
    parse_time,
    running_span,
    stage_states,
)
from finetune_operator.observe.pod_termination import add_ended_pods
from finetune_operator.plan import Manifest
from finetune_trainer.contract.vocabulary import Stage

DeviceState = Literal["waiting", "starting", "running", "ending"]
"""waiting: the pod has no node. The others hold devices. starting: it pulls images, fetches weights or loads
them. running: a container of the stage runs, or the replica is ready. ending: it is being deleted."""
HELD: Final[frozenset[DeviceState]] = frozenset({"starting", "running", "ending"})

ENDED_JOB: Final = ("Complete", "Failed", "SuccessCriteriaMet", "FailureTarget")
"""Conditions of a Job that creates no more pods."""


def device_state(pod: Manifest) -> DeviceState | None:
    """The state of the pod's devices; None if it has ended and holds none."""
    if has_ended(pod):
        return None
    runs = _is_running(pod)
    if not runs and not pod["spec"].get("nodeName"):
        return "waiting"
    if "deletionTimestamp" in pod["metadata"]:
        return "ending"
    return "running" if runs else "starting"


def _is_running(pod: Manifest) -> bool:
    if STAGE in _labels(pod):
        return any("running" in state or "terminated" in state for state in stage_states(pod))
    return has_condition(pod, "Ready", "True")


def read_profile(obj: Manifest) -> str:
    """The ComputeProfile of a pod, Job or Deployment, by its label; empty without it."""
    profile: str = _labels(obj).get(PROFILE, "")
    return profile


def labeled_devices(obj: Manifest) -> int | None:
    """Number of devices of a pod, or of each pod of a Job or Deployment, by its label.

    None: no label, or not a number of devices. Anyone who may create pods may set their labels.
    """
    text = _labels(obj).get(DEVICES, "")
    number = int(text) if text.isdecimal() else MAX_DEVICES + 1
    return number if number <= MAX_DEVICES else None


def devices_per_pod(obj: Manifest) -> int:
    """As `labeled_devices`; 0 without a number."""
    return labeled_devices(obj) or 0


def job_devices(job: Manifest) -> int:
    """Number of devices that the Job uses or waits for; 0 after its end."""
    return devices_per_pod(job) * _wanted_job_pods(job)


def missing_job_pods(job: Manifest) -> int:
    """Number of pods that the Job wants and does not have: it waits in a queue, or a quota refuses them."""
    active: int = job.get("status", {}).get("active", 0)
    return max(0, _wanted_job_pods(job) - active)


def _wanted_job_pods(job: Manifest) -> int:
    if "deletionTimestamp" in job["metadata"] or any(
        has_condition(job, type_, "True") for type_ in ENDED_JOB
    ):
        return 0
    spec, status = job.get("spec", {}), job.get("status", {})
    unfinished: int = spec.get("completions", 1) - status.get("succeeded", 0)
    wanted: int = min(spec.get("parallelism", 1), unfinished)
    return max(0, wanted)


def missing_replicas(deployment: Manifest) -> int:
    """Number of pods that the Deployment wants and does not have."""
    if "deletionTimestamp" in deployment["metadata"]:
        return 0
    wanted: int = deployment["spec"].get("replicas", 1)
    existing: int = deployment.get("status", {}).get("replicas", 0)
    return max(0, wanted - existing)


def _labels(obj: Manifest) -> Mapping[str, Any]:
    labels: Mapping[str, Any] = obj["metadata"].get("labels") or {}
    return labels


ZERO: Final = Fraction(0)


@dataclass(frozen=True, slots=True)
class PodUse:
    """One pod with devices, from the start of its first container to the end of its last one."""

    namespace: str
    profile: str
    started_at: datetime
    ended_at: datetime | None
    """None: it runs."""
    labeled: int | None
    """Devices by the pod's label; None without it."""
    requested: Mapping[str, Fraction]
    """Requests of the pod by extended resource; of an endpoint's pod without the label also the CPU cores of
    its engine."""
    problem: str = ""
    """Why the requests cannot be read; they then count as none."""

    def devices(self, resource: str) -> int:
        """Number of devices, rounded up. `resource` is that of the profile's devices.

        The resources of a pod are immutable, and its labels are not: the label counts only for what the pod
        does not request, such as devices that are CPU cores, or those before the profile's resource changed.
        """
        requested = self.requested.get(resource)
        if requested is not None and resource != CPU:
            return min(MAX_DEVICES, ceil(requested))
        if self.labeled is not None:
            return self.labeled
        return min(MAX_DEVICES, ceil(requested or 0))


def read_use(pod: Manifest) -> PodUse | None:
    """The use of devices by a pod; None before its first container starts, and for pods without devices."""
    metadata = pod["metadata"]
    labels: dict[str, str] = metadata.get("labels", {})
    profile, devices = labels.get(PROFILE), labeled_devices(pod)
    if not profile:
        return None
    requested, problem = {}, ""
    try:
        requested = _extended_requests(pod)
        if devices is None and STAGE not in labels:
            requested |= _engine_cores(pod)
    except ValueError as error:
        problem = str(error)
    if devices is None and STAGE in labels and not requested and not problem:
        return None
    spans = [
        span
        for status in container_statuses(pod)
        if (span := container_span(status.get("state", {}), pod)) is not None
    ]
    if not spans:
        return None
    return PodUse(
        namespace=metadata["namespace"],
        profile=profile,
        started_at=min(start for start, _ in spans),
        ended_at=max(end or start for start, end in spans) if has_ended(pod) else None,
        labeled=devices,
        requested=requested,
        problem=problem,
    )


def _extended_requests(pod: Manifest) -> dict[str, Fraction]:
    """Devices and other extended resources that the pod holds while it exists, as the scheduler adds them up.

    Init containers run one after the other, except those that restart, which stay next to the others.
    """
    held: dict[str, Fraction] = {}
    largest: dict[str, Fraction] = {}
    for container in pod["spec"].get("initContainers") or ():
        started = _sum(held, _extended(container))
        if container.get("restartPolicy") == "Always":
            held = started
        largest = _largest(largest, started)
    for container in pod["spec"].get("containers") or ():
        held = _sum(held, _extended(container))
    return _largest(largest, held)


def _sum(one: Mapping[str, Fraction], other: Mapping[str, Fraction]) -> dict[str, Fraction]:
    return {name: one.get(name, ZERO) + other.get(name, ZERO) for name in {*one, *other}}


def _largest(one: Mapping[str, Fraction], other: Mapping[str, Fraction]) -> dict[str, Fraction]:
    return {name: max(one.get(name, ZERO), other.get(name, ZERO)) for name in {*one, *other}}


def _extended(container: Manifest) -> dict[str, Fraction]:
    return {name: quantity_value(value) for name, value in _requests(container).items() if "/" in name}


def _engine_cores(pod: Manifest) -> dict[str, Fraction]:
    engine: Manifest = next(
        (each for each in pod["spec"].get("containers") or () if each["name"] == ENGINE_CONTAINER), {}
    )
    cores = _requests(engine).get(CPU)
    return {} if cores is None else {CPU: quantity_value(cores)}


def _requests(container: Manifest) -> dict[str, object]:
    resources = container.get("resources") or {}
    return {**(resources.get("limits") or {}), **(resources.get("requests") or {})}


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
    times = list(_times(job, sorted(pods, key=creation_time), now))
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
    begun = creation_time(job)
    is_admitted = has_condition(job, "Suspended", "False")
    admitted = parse_time((condition(job, "Suspended") or {})["lastTransitionTime"]) if is_admitted else begun
    indexes: set[int] = set()
    for pod in pods:
        index, created = index_of(pod) or 0, creation_time(pod)
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


def _scheduled_at(pod: Manifest) -> datetime | None:
    at = (condition(pod, "PodScheduled") or {}).get("lastTransitionTime")
    return parse_time(at) if at and has_condition(pod, "PodScheduled", "True") else None


def _ended_at(pod: Manifest, now: datetime) -> datetime:
    """End of a pod whose container never started: the last change of its conditions."""
    if not has_ended(pod):
        return now
    changes = (each.get("lastTransitionTime") for each in pod["status"].get("conditions") or ())
    return max((parse_time(at) for at in changes if at), default=creation_time(pod))


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
    created = creation_time(job)
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
