# SPDX-License-Identifier: Apache-2.0
"""Memory, /dev/shm and grace period of pods where the profile does not set them."""

from typing import Any

import pytest

from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.api.finetune_job_status import Prediction
from finetune_operator.manifests.pod_sizing import pod_sizing
from tests.unit.operator.runobjects import profile, sized

GIBIBYTE = 1 << 30
GPU = {"accelerator": {"resource": "nvidia.com/gpu", "maxPerPod": 8}}


def profile_of(**spec: Any) -> ComputeProfile:
    return ComputeProfile.model_validate(profile(**spec))


def predicted(host: float = 1, state: float = 0.1, device: float = 10) -> Prediction:
    """A prediction with these sizes in GiB."""
    return Prediction(
        device_memory_bytes=int(device * GIBIBYTE),
        host_memory_bytes=int(host * GIBIBYTE),
        state_bytes=int(state * GIBIBYTE),
        flops=1e15,
    )


@pytest.mark.parametrize(
    ("stage", "spec", "devices", "prediction", "memory"),
    [
        ("train", GPU, 1, None, "4Gi"),
        ("train", GPU, 1, predicted(host=2), "4Gi"),
        ("train", GPU, 1, predicted(host=16), "20Gi"),
        ("train", GPU, 1, predicted(host=10), "12800Mi"),
        ("train", GPU, 8, predicted(host=16), "28Gi"),
        ("evaluate", GPU, 1, predicted(host=16), "20Gi"),
        # Tensors of a profile without accelerators are in the memory of the pod.
        ("train", {}, 1, predicted(host=2, device=6), "10Gi"),
        ("train", {**GPU, "pods": sized(train={"cpu": "8", "memory": "6Gi"})}, 8, predicted(16), "6Gi"),
        ("preflight", GPU, 0, predicted(host=16), "3Gi"),
    ],
)
def test_the_memory_of_a_pod_follows_from_the_prediction_unless_the_profile_sets_it(
    stage: Any, spec: dict[str, Any], devices: int, prediction: Prediction | None, memory: str
) -> None:
    assert pod_sizing(stage, profile_of(**spec), devices, prediction).resources.memory == memory


@pytest.mark.parametrize(
    ("stage", "spec", "devices", "size"),
    [
        ("train", GPU, 1, None),
        ("train", GPU, 8, "8Gi"),
        ("train", {**GPU, "pods": [{"sharedMemory": "16Gi"}]}, 8, "16Gi"),
        ("train", {**GPU, "pods": [{"sharedMemory": "16Gi"}]}, 1, "16Gi"),
        ("evaluate", {**GPU, "pods": [{"sharedMemory": "16Gi"}]}, 1, None),
        ("evaluate", GPU, 2, "2Gi"),
        ("train", {}, 4, None),
        ("prepare", GPU, 0, None),
    ],
)
def test_pods_with_several_accelerators_get_shared_memory(
    stage: Any, spec: dict[str, Any], devices: int, size: str | None
) -> None:
    assert pod_sizing(stage, profile_of(**spec), devices, None).shared_memory == size


@pytest.mark.parametrize(
    ("stage", "prediction", "seconds"),
    [
        ("train", None, 120),
        ("train", predicted(state=0.1), 120),
        ("train", predicted(state=75), 830),
        ("train", predicted(state=900), 1800),
        ("evaluate", predicted(state=75), None),
    ],
)
def test_the_grace_period_is_long_enough_to_write_the_resume_state(
    stage: Any, prediction: Prediction | None, seconds: int | None
) -> None:
    assert pod_sizing(stage, profile_of(**GPU), 1, prediction).grace_seconds == seconds
