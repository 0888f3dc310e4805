# SPDX-License-Identifier: Apache-2.0
"""Utilization and memory of devices that the last runs of each ComputeProfile measured, in all namespaces."""

from bisect import insort
from collections import OrderedDict
from collections.abc import Hashable
from statistics import median
from typing import Any, Final, Generic, NamedTuple, TypeVar

from finetune_operator.plan import Manifest
from finetune_operator.status.reasons import ConditionType

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


class Calibration:
    """Keeps few numbers per run.

    A run stays counted after its deletion, because the measurement stays true, until the operator restarts.
    """

    def __init__(self, max_lines: int = MAX_LINES) -> None:
        self._mfu: _LastRuns[str] = _LastRuns(MAX_RUNS)
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
        mfu = (prediction.get("measured") or {}).get("mfu")
        if mfu:
            self._mfu.add(profile, trained_at, uid, float(mfu))
        peak = (status.get("training") or {}).get("deviceMemoryBytes")
        device = prediction.get("deviceMemoryAvailableBytes")
        if peak and device:
            self._memory_used_ratio.add(profile, trained_at, uid, peak / device)
            line = LineOnProfile(job["metadata"]["namespace"], job["spec"]["modelLine"], profile)
            self._peak_bytes.add(line, trained_at, uid, peak)

    def mfu(self, profile: str) -> float | None:
        """The median model FLOPs utilization of the last runs with this profile; None before the first."""
        runs = self._mfu.of(profile)
        return median(runs) if runs else None

    def peak_bytes(self, line: LineOnProfile) -> list[float]:
        """Peak memory of the devices in the last runs of a model line with a profile, oldest first."""
        return self._peak_bytes.of(line)

    def memory_used_ratio(self, profile: str) -> float | None:
        """The median of peak divided by memory of a device over the last runs; None before the first."""
        ratios = self._memory_used_ratio.of(profile)
        return median(ratios) if ratios else None
