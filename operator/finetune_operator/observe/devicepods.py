# SPDX-License-Identifier: Apache-2.0
"""Devices of pods, and whether the pods hold them or wait for them."""

from collections.abc import Mapping
from typing import Any, Final, Literal

from finetune_operator.api.pod_resources import MAX_DEVICES
from finetune_operator.manifests.labels import DEVICES, PROFILE, STAGE
from finetune_operator.observe.podstatus import has_condition, has_ended
from finetune_operator.observe.stagetimes import stage_states
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


def profile_of(obj: Manifest) -> str:
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
