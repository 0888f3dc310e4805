# SPDX-License-Identifier: Apache-2.0
"""Devices of the Jobs that have not ended, by namespace and ComputeProfile."""

from collections import defaultdict

from finetune_operator.engine.metadata import controller_uid
from finetune_operator.observe.devicepods import job_devices, profile_of
from finetune_operator.plan import Manifest

Place = tuple[str, str]
"""Namespace and ComputeProfile."""


class JobDevices:
    """Keeps one number per Job with devices."""

    def __init__(self) -> None:
        self._jobs: defaultdict[Place, dict[str, tuple[str | None, int]]] = defaultdict(dict)
        """Owner and devices, by the uid of the Job."""

    def note(self, old: Manifest | None, new: Manifest | None) -> None:
        """Take a change of a Job."""
        if old is not None:
            place = _place(old)
            self._jobs[place].pop(old["metadata"]["uid"], None)
            if not self._jobs[place]:
                del self._jobs[place]
        if new is not None and (devices := job_devices(new)):
            self._jobs[_place(new)][new["metadata"]["uid"]] = (controller_uid(new), devices)

    def of_others(self, namespace: str, owner: str, profile: str) -> int:
        """Number of devices of this profile in Jobs of the namespace, except those of this owner."""
        jobs = self._jobs.get((namespace, profile), {}).values()
        return sum(devices for each, devices in jobs if each != owner)


def _place(job: Manifest) -> Place:
    return job["metadata"]["namespace"], profile_of(job)
