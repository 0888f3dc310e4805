# SPDX-License-Identifier: Apache-2.0
"""Devices of pods: which pods hold or wait for how many, and when.

Devices of pods, and whether the pods hold them or wait for them.

When a pod uses how many devices of which ComputeProfile.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction
from math import ceil
from typing import Any, Final, Literal

from finetune_operator.api.pod_resources import CPU, MAX_DEVICES, quantity_value
from finetune_operator.manifests.endpoint import ENGINE_CONTAINER
from finetune_operator.manifests.labels import DEVICES, PROFILE, STAGE
from finetune_operator.observe.pod_status import (
    container_span,
    container_statuses,
    has_condition,
    has_ended,
    stage_states,
)
from finetune_operator.plan import Manifest

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
