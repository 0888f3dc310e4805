# SPDX-License-Identifier: Apache-2.0
"""Use of the devices of ComputeProfiles, as the caches know it: by pods, unfinished Jobs and last runs.

Pods count also if they were deleted a moment ago. What the last runs measured counts in all namespaces.
"""

import logging
from bisect import insort
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Hashable
from dataclasses import replace
from datetime import datetime, timedelta
from statistics import median
from typing import Any, Final, Generic, NamedTuple, TypeVar

from finetune_operator.api.labels import PROFILE
from finetune_operator.engine.resources import controller
from finetune_operator.observe.device_usage import PodUse, job_devices, read_profile, read_use
from finetune_operator.observe.pod_status import creation_time, has_ended
from finetune_operator.plan import Manifest
from finetune_operator.status.reasons import ConditionType
from finetune_trainer.contract.method import DEFAULT_TYPE

logger = logging.getLogger(__name__)

KEPT: Final = timedelta(minutes=10)
"""Time for which a deleted pod stays known. Each pass counts it, and passes are at most 5 minutes apart."""


class DeviceUse:
    """Keeps a few numbers per pod with devices.

    Args:
        clock: returns the time, in UTC. A pod that is deleted while it runs ends now.
        unwatched_seconds: returns the seconds for which nothing is known of the pods of a namespace. A pod
            that is found to be gone afterwards ended before them.
    """

    def __init__(
        self, clock: Callable[[], datetime], unwatched_seconds: Callable[[str], float] = lambda _: 0.0
    ) -> None:
        self._clock = clock
        self._unwatched_seconds = unwatched_seconds
        self._uses: defaultdict[str, dict[str, PodUse]] = defaultdict(dict)
        self._deleted: deque[tuple[datetime, str, str]] = deque()
        self._unread: set[str] = set()

    def note(self, old: Manifest | None, new: Manifest | None) -> None:
        """Take a change of a pod."""
        if old is not None and (new is None or _identity(old) != _identity(new)):
            self._end(old)
        if new is not None:
            self._take(new)

    def of(self, profile: str) -> tuple[PodUse, ...]:
        """The pods of a profile."""
        return tuple(self._uses.get(profile, {}).values())

    def _take(self, pod: Manifest) -> None:
        profile, uid = _identity(pod)
        known, found = self._uses.get(profile, {}).get(uid), self._read(pod)
        if found is not None:
            started = found.started_at if known is None else min(known.started_at, found.started_at)
            self._uses[profile][uid] = replace(found, started_at=started)
        elif known is not None and has_ended(pod):
            self._end(pod)
        # A pod whose container waits for its next start holds its devices.

    def _read(self, pod: Manifest) -> PodUse | None:
        """The use of the pod. What cannot be read of it is reported once."""
        found, metadata = read_use(pod), pod["metadata"]
        if found is not None and found.problem and metadata["uid"] not in self._unread:
            self._unread.add(metadata["uid"])
            logger.warning(
                "the requests of pod %s/%s cannot be read and do not count for the budget of ComputeProfile"
                " %s: %s",
                found.namespace,
                metadata["name"],
                found.profile,
                found.problem,
            )
        return found

    def _end(self, pod: Manifest) -> None:
        profile, uid = _identity(pod)
        use = self._uses.get(profile, {}).get(uid) or self._read(pod)
        self._unread.discard(uid)
        if use is None:
            return
        now = self._clock().replace(microsecond=0)
        known_until = now - timedelta(seconds=int(self._unwatched_seconds(use.namespace)))
        ended_at = use.ended_at or max(use.started_at, known_until)
        self._uses[profile][uid] = replace(use, ended_at=ended_at)
        self._deleted.append((now, profile, uid))
        self._forget(now)

    def _forget(self, now: datetime) -> None:
        while self._deleted and now - self._deleted[0][0] > KEPT:
            _, profile, uid = self._deleted.popleft()
            uses = self._uses.get(profile, {})
            # The labels of a pod can change back.
            if uid in uses and uses[uid].ended_at is not None:
                del uses[uid]
            if not uses:
                self._uses.pop(profile, None)


def _identity(pod: Manifest) -> tuple[str, str]:
    """Profile and uid."""
    metadata = pod["metadata"]
    return metadata.get("labels", {}).get(PROFILE, ""), metadata["uid"]


Place = tuple[str, str]
"""Namespace and ComputeProfile."""


class DeviceJob(NamedTuple):
    """A Job that uses devices or waits for them."""

    created_at: datetime
    owner_uid: str
    devices: int
    runs: bool
    """Whether a pod of it runs."""


class JobDevices:
    """Keeps a few values per Job with devices."""

    def __init__(self) -> None:
        self._jobs: defaultdict[Place, dict[str, DeviceJob]] = defaultdict(dict)
        """By the uid of the Job."""

    def note(self, old: Manifest | None, new: Manifest | None) -> None:
        """Take a change of a Job."""
        if old is not None:
            place = _place(old)
            self._jobs[place].pop(old["metadata"]["uid"], None)
            if not self._jobs[place]:
                del self._jobs[place]
        if new is not None and (devices := job_devices(new)):
            self._jobs[_place(new)][new["metadata"]["uid"]] = _device_job(new, devices)

    def of_others(self, namespace: str, owner_uid: str, profile: str) -> list[DeviceJob]:
        """Jobs of the namespace with this profile, except those of this owner; the oldest first."""
        jobs = self._jobs.get((namespace, profile), {}).values()
        return sorted(job for job in jobs if job.owner_uid != owner_uid)


def _device_job(job: Manifest, devices: int) -> DeviceJob:
    owner = controller(job)
    return DeviceJob(
        created_at=creation_time(job),
        owner_uid=owner.get("uid", ""),
        devices=devices,
        runs=bool(job.get("status", {}).get("ready")),
    )


def _place(job: Manifest) -> Place:
    return job["metadata"]["namespace"], read_profile(job)


MAX_RUNS: Final = 20
"""Number of most recent runs per profile."""
MAX_LINE_RUNS: Final = 5
"""Number of most recent runs per model line with a profile."""
MAX_LINES: Final = 10_000
"""Number of model lines with a profile to keep, those with the last noted runs."""

K = TypeVar("K", bound=Hashable)


class LineOnProfile(NamedTuple):
    """A model line and the ComputeProfile of its runs."""

    namespace: str
    model_line: str
    profile: str


MIN_CALIBRATION_SECONDS: Final = 300
"""Seconds of training below which a run predicts nothing: its start is a large part of them."""


class SimilarRuns(NamedTuple):
    """Runs that reach about the same utilization: a base model, and how it is trained on which devices."""

    profile: str
    base_model: str
    """URI of the base model."""
    method_type: str


class _LastRuns(Generic[K]):
    """One number per run, of the last trained runs per key.

    Args:
        max_runs: number of runs per key.
        max_keys: number of keys, those with the last added runs; None: no limit.
    """

    def __init__(self, max_runs: int, max_keys: int | None = None) -> None:
        self._max_runs = max_runs
        self._max_keys = max_keys
        self._runs: OrderedDict[K, list[tuple[str, str, float]]] = OrderedDict()

    def add(self, key: K, trained_at: str, uid: str, value: float) -> None:
        """Count the value once per run.

        `trained_at`: ISO 8601 in UTC, so that the order of texts is that of times.
        """
        runs = self._runs.setdefault(key, [])
        if all(known != uid for _, known, _ in runs):
            insort(runs, (trained_at, uid, value))
            del runs[: -self._max_runs]
        self._runs.move_to_end(key)
        if self._max_keys is not None and len(self._runs) > self._max_keys:
            self._runs.popitem(last=False)

    def of(self, key: K) -> list[float]:
        """The values of the last runs, oldest first."""
        return [value for _, _, value in self._runs.get(key, ())]

    def median(self, key: K) -> float | None:
        """The median of the last runs; None before the first."""
        values = self.of(key)
        return median(values) if values else None


class Calibration:
    """Keeps few numbers per run.

    A run stays counted after its deletion, because the measurement stays true, until the operator restarts.
    """

    def __init__(self, max_lines: int = MAX_LINES) -> None:
        self._mfu: _LastRuns[str] = _LastRuns(MAX_RUNS)
        self._similar_mfu: _LastRuns[SimilarRuns] = _LastRuns(MAX_RUNS, max_lines)
        self._memory_used_ratio: _LastRuns[str] = _LastRuns(MAX_RUNS)
        self._peak_bytes: _LastRuns[LineOnProfile] = _LastRuns(MAX_LINE_RUNS, max_lines)

    def note(self, job: Manifest) -> None:
        """Count what the FineTuneJob has measured."""
        status: dict[str, Any] = job.get("status") or {}
        profile = (status.get("resolved") or {}).get("profile")
        trained_at = next(
            (
                each["lastTransitionTime"]
                for each in status.get("conditions") or ()
                if each["type"] == ConditionType.TRAINED
            ),
            None,
        )
        if not profile or not trained_at:
            return
        uid, prediction = job["metadata"]["uid"], status.get("prediction") or {}
        measured = prediction.get("measured") or {}
        mfu = measured.get("mfu")
        if mfu:
            self._mfu.add(profile, trained_at, uid, float(mfu))
            if measured.get("seconds", 0) >= MIN_CALIBRATION_SECONDS:
                self._similar_mfu.add(_similar(job, profile), trained_at, uid, float(mfu))
        peak = (status.get("training") or {}).get("deviceMemoryBytes")
        device = prediction.get("deviceMemoryAvailableBytes")
        if peak and device:
            self._memory_used_ratio.add(profile, trained_at, uid, peak / device)
            line = LineOnProfile(job["metadata"]["namespace"], job["spec"]["modelLine"], profile)
            self._peak_bytes.add(line, trained_at, uid, peak)

    def mfu(self, profile: str) -> float | None:
        """The median model FLOPs utilization of the last runs with this profile; None before the first."""
        return self._mfu.median(profile)

    def mfu_of(self, runs: SimilarRuns) -> float | None:
        """The same of the last similar runs of at least MIN_CALIBRATION_SECONDS."""
        return self._similar_mfu.median(runs)

    def peak_bytes(self, line: LineOnProfile) -> list[float]:
        """Peak memory of the devices in the last runs of a model line with a profile, oldest first."""
        return self._peak_bytes.of(line)

    def memory_used_ratio(self, profile: str) -> float | None:
        """The median of peak divided by memory of a device over the last runs; None before the first."""
        return self._memory_used_ratio.median(profile)


def _similar(job: Manifest, profile: str) -> SimilarRuns:
    spec, resolved = job["spec"], (job.get("status") or {}).get("resolved") or {}
    base_model = resolved.get("baseModelUri") or spec["baseModel"].get("uri") or ""
    return SimilarRuns(profile, base_model, (spec.get("method") or {}).get("type") or DEFAULT_TYPE)
