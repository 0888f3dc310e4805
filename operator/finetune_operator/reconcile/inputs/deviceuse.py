# SPDX-License-Identifier: Apache-2.0
"""Use of devices by the pods of each ComputeProfile, also by pods that were deleted a moment ago."""

from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from finetune_operator.observe.poduse import PodUse, use_of
from finetune_operator.plan import Manifest

KEPT: Final = timedelta(minutes=10)
"""Time for which a deleted pod stays known. Each pass counts it, and passes are at most 5 minutes apart."""


class DeviceUse:
    """Keeps a few numbers per pod with devices.

    Args:
        clock: returns the time, in UTC. A pod that is deleted while it runs ends now.
    """

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self._uses: defaultdict[str, dict[str, PodUse]] = defaultdict(dict)
        self._deleted: deque[tuple[datetime, str, str]] = deque()

    def note(self, old: Manifest | None, new: Manifest | None) -> None:
        """Take a change of a pod."""
        before, after = (use_of(pod) if pod is not None else None for pod in (old, new))
        uid = (new or old or {})["metadata"]["uid"]
        if after is not None:
            self._uses[after.profile][uid] = after
        if before is not None and (after is None or after.profile != before.profile):
            now = self._clock().replace(microsecond=0)
            self._uses[before.profile][uid] = replace(before, ended_at=before.ended_at or now)
            self._deleted.append((now, before.profile, uid))
            self._forget(now)

    def of(self, profile: str) -> tuple[PodUse, ...]:
        """The pods of a profile."""
        return tuple(self._uses.get(profile, {}).values())

    def _forget(self, now: datetime) -> None:
        while self._deleted and now - self._deleted[0][0] > KEPT:
            _, profile, uid = self._deleted.popleft()
            self._uses[profile].pop(uid, None)
            if not self._uses[profile]:
                del self._uses[profile]
