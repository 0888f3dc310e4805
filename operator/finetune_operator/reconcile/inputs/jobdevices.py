# SPDX-License-Identifier: Apache-2.0
"""Jobs with devices that have not ended, by namespace and ComputeProfile."""

from collections import defaultdict
from datetime import datetime
from typing import NamedTuple

from finetune_operator.engine.resources import controller
from finetune_operator.observe.device_usage import job_devices, profile_of
from finetune_operator.observe.pod_status import parse_time
from finetune_operator.plan import Manifest

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
    metadata = job["metadata"]
    owner = controller(job)
    return DeviceJob(
        created_at=parse_time(metadata["creationTimestamp"]),
        owner_uid=owner.get("uid", ""),
        devices=devices,
        runs=bool(job.get("status", {}).get("ready")),
    )


def _place(job: Manifest) -> Place:
    return job["metadata"]["namespace"], profile_of(job)
