# SPDX-License-Identifier: Apache-2.0
"""Memory, shared memory and grace period of a stage's pods, where the ComputeProfile does not set them."""

import math
from dataclasses import dataclass
from typing import Final

from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.api.finetune_job_status import Prediction
from finetune_operator.api.pod_resources import CPU, PodResources, quantity_value
from finetune_operator.plan import Manifest
from finetune_operator.stage_table import SERVE_PODS, STAGES, JobStage, pod_names

MEBIBYTE: Final = 1 << 20
HEADROOM: Final = 1.25
"""Memory limit of a pod as a multiple of the predicted peak."""
STEP_BYTES: Final = 256 * MEBIBYTE
SHARED_MEMORY_BYTES: Final = 1024 * MEBIBYTE
"""Size of /dev/shm per accelerator in a pod with several. NCCL exchanges data between processes there; the
64 MiB of a container runtime are not enough."""

WEIGHTS_SHARE: Final = 0.8
"""Share of a device's memory that weights may take in evaluation. The rest is for activations and answers."""

WRITE_BYTES_PER_SECOND: Final = 100 * MEBIBYTE
"""Rate at which a store is expected to take a resume state."""
STEP_SECONDS: Final = 60
"""Seconds of the grace period to finish a step, in addition to those for the resume state."""
MAX_GRACE_SECONDS: Final = 1800
SCRATCH_LIMIT: Final = "100Gi"
"""Size limit of temporary files and answers, if the profile has no `ephemeralStorage` for the stage.

An endless log or cache then ends its own pod before the node evicts others.
"""
MODELS_LIMIT: Final = "2Ti"
"""Size limit of an endpoint's models in the same case: above the largest known ones."""


@dataclass(frozen=True, slots=True)
class PodSizing:
    """What the pods of one stage get."""

    resources: PodResources
    """CPU, memory and ephemeral storage, from the profile or chosen here."""
    is_given: bool
    """Whether the resources are those of the profile."""
    shared_memory: str | None
    """Size of /dev/shm as a quantity; None for that of the container runtime."""
    grace_seconds: int | None
    """Seconds from SIGTERM to SIGKILL; None for the cluster's default."""


def disk_volume(name: str, resources: PodResources | None, default: str) -> Manifest:
    """A volume on the node's disk with the size limit of the profile, or else this one."""
    given = None if resources is None else resources.ephemeral_storage
    return {"name": name, "emptyDir": {"sizeLimit": given or default}}


def one_device_holds(weights_bytes: int | None, device_bytes: int | None) -> bool:
    """Whether one device can evaluate a model with these weights; true if either is unknown."""
    if weights_bytes is None or device_bytes is None:
        return True
    return weights_bytes <= WEIGHTS_SHARE * device_bytes


def resources_of(stage: JobStage, profile: ComputeProfile | None) -> PodResources | None:
    """Resources that the profile gives the pods of a stage; None for the operator's."""
    return profile.spec.pods_of(pod_names(stage)).resources if profile is not None else None


def serving_resources(profile: ComputeProfile) -> PodResources | None:
    """Resources that the profile gives the pods of endpoints; None for the engine's."""
    return profile.spec.pods_of(SERVE_PODS).resources


def pod_sizing(
    stage: JobStage, profile: ComputeProfile | None, devices: int, prediction: Prediction | None
) -> PodSizing:
    """The sizing of a stage's pods.

    Args:
        devices: devices per pod; 0 for a stage without devices.
        prediction: that of the run, if there is one. Its memory is that of a train pod; evaluate loads the
            same weights.
    """
    row = STAGES[stage]
    given = resources_of(stage, profile)
    accelerators = devices if profile is not None and profile.spec.accelerator.resource != CPU else 0
    shared, shared_bytes = _shared_memory(stage, profile, accelerators)
    return PodSizing(
        resources=given
        or _with_memory(row.resources, shared_bytes, prediction if devices else None, accelerators),
        is_given=given is not None,
        shared_memory=shared,
        grace_seconds=_grace_seconds(row.grace_seconds, prediction),
    )


def _shared_memory(
    stage: JobStage, profile: ComputeProfile | None, accelerators: int
) -> tuple[str | None, int]:
    """Size of /dev/shm, and the bytes by which the memory limit is raised for it.

    The profile's own size never changes the limit, because its memory was chosen without that.
    """
    requested = profile.spec.pods_of(pod_names(stage)).shared_memory if profile is not None else None
    if requested and (STAGES[stage].multi_node or accelerators > 1):
        return requested, 0
    if accelerators > 1:
        size = accelerators * SHARED_MEMORY_BYTES
        return _quantity(size), size
    return None, 0


def serving_shared_memory(profile: ComputeProfile, accelerators: int) -> str | None:
    """Size of /dev/shm for an engine with a process per accelerator; None for that of the runtime."""
    if accelerators < 2:
        return None
    return profile.spec.pods_of(SERVE_PODS).shared_memory or _quantity(accelerators * SHARED_MEMORY_BYTES)


def _with_memory(
    default: PodResources, shared_bytes: int, prediction: Prediction | None, accelerators: int
) -> PodResources:
    """The stage's default, with at least as much memory as predicted and the size of /dev/shm on top."""
    memory = int(quantity_value(default.memory))
    if prediction is not None:
        # Where devices are CPU cores, tensors are in the memory of the pod.
        tensors = 0 if accelerators else prediction.device_memory_bytes
        memory = max(memory, int((prediction.host_memory_bytes + tensors) * HEADROOM))
    if memory + shared_bytes == quantity_value(default.memory):
        return default
    return default.model_copy(update={"memory": _quantity(memory + shared_bytes)})


def _quantity(size: int) -> str:
    """Bytes as a quantity, rounded up to a multiple of `STEP_BYTES`."""
    mebibytes = math.ceil(size / STEP_BYTES) * STEP_BYTES // MEBIBYTE
    return f"{mebibytes // 1024}Gi" if mebibytes % 1024 == 0 else f"{mebibytes}Mi"


def _grace_seconds(default: int | None, prediction: Prediction | None) -> int | None:
    """Time to finish a step and write the resume state, in multiples of 10 seconds."""
    if default is None or prediction is None:
        return default
    seconds = STEP_SECONDS + prediction.state_bytes / WRITE_BYTES_PER_SECOND
    return min(MAX_GRACE_SECONDS, max(default, math.ceil(seconds / 10) * 10))
