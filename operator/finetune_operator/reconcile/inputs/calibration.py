# SPDX-License-Identifier: Apache-2.0
"""Utilization and memory of devices that the last runs of each ComputeProfile measured, in all namespaces."""

from bisect import insort
from collections import defaultdict
from statistics import median
from typing import Any, Final, Generic, NamedTuple, TypeVar

from finetune_operator.plan import Manifest
from finetune_operator.status.reasons import ConditionType

MAX_RUNS: Final = 20
"""Number of most recent runs per profile."""

V = TypeVar("V")


class MeasuredMemory(NamedTuple):
    """Memory of the devices of a run's train stage, in bytes per device."""

    namespace: str
    model: str
    """Model line of the run."""
    peak_bytes: int
    device_bytes: int


class _LastRuns(Generic[V]):
    """One value per run, of the last `MAX_RUNS` trained runs per profile."""

    def __init__(self) -> None:
        self._runs: defaultdict[str, list[tuple[str, str, V]]] = defaultdict(list)

    def add(self, profile: str, trained_at: str, uid: str, value: V) -> None:
        """Count the value once per run.

        `trained_at`: ISO 8601 in UTC, so that the order of texts is that of times.
        """
        runs = self._runs[profile]
        if all(known != uid for _, known, _ in runs):
            insort(runs, (trained_at, uid, value), key=lambda run: run[:2])
            del runs[:-MAX_RUNS]

    def of(self, profile: str) -> list[V]:
        """The values of the last runs with this profile, oldest first."""
        return [value for _, _, value in self._runs.get(profile, ())]


class Calibration:
    """Keeps few numbers per run.

    A run stays counted after its deletion, because the measurement stays true, until the operator restarts.
    """

    def __init__(self) -> None:
        self._mfu: _LastRuns[float] = _LastRuns()
        self._memory: _LastRuns[MeasuredMemory] = _LastRuns()

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
        mfu = (prediction.get("measured") or {}).get("mfu")
        if mfu:
            self._mfu.add(profile, trained_at, uid, float(mfu))
        peak = (status.get("training") or {}).get("deviceMemoryBytes")
        device = prediction.get("deviceMemoryAvailableBytes")
        if peak and device:
            memory = MeasuredMemory(job["metadata"]["namespace"], job["spec"]["model"], peak, device)
            self._memory.add(profile, trained_at, uid, memory)

    def mfu(self, profile: str) -> float | None:
        """The median model FLOPs utilization of the last runs with this profile; None before the first."""
        runs = self._mfu.of(profile)
        return median(runs) if runs else None

    def memory(self, profile: str) -> tuple[MeasuredMemory, ...]:
        """The memory that the last runs with this profile used, oldest first."""
        return tuple(self._memory.of(profile))

    def memory_used_ratio(self, profile: str) -> float | None:
        """The median of peak divided by memory of a device over the last runs; None before the first."""
        ratios = [each.peak_bytes / each.device_bytes for each in self._memory.of(profile)]
        return median(ratios) if ratios else None
