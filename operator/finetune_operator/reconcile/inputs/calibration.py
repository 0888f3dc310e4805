"""Model FLOPs utilization that the last runs of each ComputeProfile reached, in all namespaces."""

from bisect import insort
from collections import defaultdict
from statistics import median
from typing import Any, Final, NamedTuple

from finetune_operator.plan import Manifest
from finetune_operator.status.reasons import ConditionType

MAX_RUNS: Final = 20
"""Number of most recent runs per profile."""


class _Measured(NamedTuple):
    trained_at: str
    """ISO 8601 in UTC, so that the order of texts is that of times."""
    uid: str
    mfu: float


class Calibration:
    """Keeps one number per run, of the last `MAX_RUNS` trained runs per profile.

    A run stays counted after its deletion, because the measurement stays true, until the operator restarts.
    """

    def __init__(self) -> None:
        self._runs: defaultdict[str, list[_Measured]] = defaultdict(list)

    def note(self, job: Manifest) -> None:
        """Count the FineTuneJob if it has a measured utilization."""
        status: dict[str, Any] = job.get("status") or {}
        mfu = ((status.get("prediction") or {}).get("measured") or {}).get("mfu")
        profile = (status.get("resolved") or {}).get("profile")
        trained_at = next(
            (
                each["lastTransitionTime"]
                for each in status.get("conditions") or ()
                if each["type"] == ConditionType.TRAINED
            ),
            None,
        )
        if not mfu or not profile or not trained_at:
            return
        runs, uid = self._runs[profile], job["metadata"]["uid"]
        if any(known.uid == uid for known in runs):
            return
        insort(runs, _Measured(trained_at, uid, float(mfu)))
        del runs[:-MAX_RUNS]

    def mfu(self, profile: str) -> float | None:
        """The median of the last runs with this profile; None before the first."""
        runs = self._runs.get(profile)
        return median(each.mfu for each in runs) if runs else None
