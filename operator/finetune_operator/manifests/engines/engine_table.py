# SPDX-License-Identifier: Apache-2.0
"""The engines by the name of `serving.engine` of a ComputeProfile."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from finetune_operator.api.compute_profile import BUILT_IN, ComputeProfile
from finetune_operator.api.pod_resources import CPU, PodResources, quantity_value
from finetune_operator.manifests.engines.engine_inputs import AnsweringEngine, ServingConfig
from finetune_operator.manifests.engines.transformers import transformers_container
from finetune_operator.manifests.engines.vllm import VLLM_ANSWERING, max_lora_rank, vllm_container
from finetune_operator.manifests.pod_sizing import resources_of, serving_resources
from finetune_operator.plan import Manifest
from finetune_operator.stage_table import STAGES
from finetune_trainer.contract.serving import EngineName


@dataclass(frozen=True, slots=True)
class ServingEngine:
    """What the pods of an endpoint need for one engine."""

    container: Callable[[ServingConfig], Manifest]
    """Command, environment, ports and probes of the engine's container."""
    max_lora_rank: Callable[[ServingConfig], int] | None
    """Highest rank of an adapter that the engine loads as it is configured; None: any."""
    default_resources: PodResources
    """Resources of the container where the profile has none. At least the CPU of each stage in `STAGES`: on a
    node without idle processors, pods get processor time in proportion to their requests."""
    scratch_limit: str
    """Size limit of temporary files, such as compiled kernels."""
    has_processes: bool
    """Whether the engine has a process per accelerator, which exchange data in /dev/shm."""
    answering: AnsweringEngine | None
    """How it generates the answers of evaluations; None: the trainer does."""


ENGINES: Final[Mapping[EngineName, ServingEngine]] = {
    BUILT_IN: ServingEngine(
        container=transformers_container,
        max_lora_rank=None,
        default_resources=PodResources(cpu="1", memory="3Gi"),
        scratch_limit="1Gi",
        has_processes=False,
        answering=None,
    ),
    "VLLM": ServingEngine(
        container=vllm_container,
        max_lora_rank=max_lora_rank,
        default_resources=PodResources(cpu="2", memory="16Gi"),
        scratch_limit="10Gi",
        has_processes=True,
        answering=VLLM_ANSWERING,
    ),
}


def engine_of(profile: ComputeProfile) -> ServingEngine:
    """The engine of a profile."""
    return ENGINES[profile.spec.serving.engine]


def engine_resources(profile: ComputeProfile, devices: int, default: PodResources) -> Manifest:
    """Requests and limits of the engine's container.

    Where devices are CPU cores and the profile has no resources for serving, the CPU request is the number of
    devices, and at least that of each stage in the profile, so that stages do not slow an endpoint down.

    Args:
        profile: the ComputeProfile.
        devices: devices of the pod.
        default: resources if the profile has none for serving.
    """
    given = serving_resources(profile)
    resources = given or default
    requests, limits = {"cpu": resources.cpu, **resources.limited}, resources.limited
    if profile.spec.accelerator.resource != CPU:
        limits[profile.spec.accelerator.resource] = str(devices)
    elif given is None:
        of_stages = [each.cpu for stage in STAGES if (each := resources_of(stage, profile)) is not None]
        requests["cpu"] = max([str(devices), *of_stages], key=quantity_value)
    return {"requests": requests, "limits": limits}


def engine_image(profile: ComputeProfile, trainer_image: str) -> str:
    """Image of the engine's container. The built-in engine is part of the trainer image."""
    if profile.spec.serving.engine == BUILT_IN:
        return trainer_image
    return profile.spec.images.engine or trainer_image
