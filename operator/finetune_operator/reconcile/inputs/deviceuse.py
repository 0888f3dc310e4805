# SPDX-License-Identifier: Apache-2.0
"""Use of devices by the pods of each ComputeProfile, also by pods that were deleted a moment ago."""

import logging
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from finetune_operator.manifests.labels import PROFILE
from finetune_operator.observe.device_usage import PodUse, use_of
from finetune_operator.observe.pod_status import has_ended
from finetune_operator.plan import Manifest

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
        found, metadata = use_of(pod), pod["metadata"]
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
