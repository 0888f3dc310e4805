# SPDX-License-Identifier: Apache-2.0
"""The ComputeProfile of a local run: made from this machine, or that of a platform team from a file.

PyTorch is not imported for it: that takes seconds.
"""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from finetune_operator.api.compute_profile import DEFAULT_PROFILE_LABEL
from finetune_operator.api.meta import API_VERSION
from finetune_operator.api.pod_resources import CPU
from finetune_operator.plan import Manifest

PROFILE: Final = "local"
STORE: Final = "artifacts"
"""Claim of the store."""
CUDA: Final = "nvidia.com/gpu"
QUERY: Final = ("--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
QUERY_SECONDS: Final = 20.0


@dataclass(frozen=True, slots=True)
class Machine:
    """What this machine has.

    Attributes:
        cores: processor cores that this process may use.
        memory_bytes: memory of the machine.
        gpus: CUDA devices.
        gpu_product: their product as in the node label `nvidia.com/gpu.product`.
        gpu_mebibytes: memory of the smallest of them.
    """

    cores: int
    memory_bytes: int
    gpus: int = 0
    gpu_product: str = ""
    gpu_mebibytes: int = 0

    @property
    def resource(self) -> str:
        """Resource of its devices."""
        return CUDA if self.gpus else CPU


def this_machine() -> Machine:
    """The machine that this process runs on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cards = _cards()
    if not cards:
        return Machine(cores, memory)
    return Machine(
        cores,
        memory,
        gpus=len(cards),
        gpu_product=cards[0][0].replace(" ", "-"),
        gpu_mebibytes=min(size for _, size in cards),
    )


def _cards() -> list[tuple[str, int]]:
    """Name and mebibytes of each CUDA device that processes see."""
    program = shutil.which("nvidia-smi")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if program is None or visible in ("", "-1"):
        return []
    try:
        answer = subprocess.run(
            [program, *QUERY], capture_output=True, text=True, timeout=QUERY_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    rows = [line.rpartition(",") for line in answer.stdout.splitlines() if "," in line]
    cards = [(name.strip(), int(size)) for name, _, size in rows if size.strip().isdigit()]
    return cards if visible is None else cards[: len(visible.split(","))]


def machine_profile(machine: Machine) -> Manifest:
    """The default ComputeProfile of this machine. Its pods use all cores."""
    accelerator: Manifest = {"resource": machine.resource, "maxPerPod": machine.gpus or machine.cores}
    if machine.gpus:
        accelerator |= {"product": machine.gpu_product, "memory": f"{machine.gpu_mebibytes}Mi"}
    resources = {"cpu": str(machine.cores), "memory": f"{machine.memory_bytes >> 20}Mi"}
    return as_default(
        {
            "apiVersion": API_VERSION,
            "kind": "ComputeProfile",
            "metadata": {"name": PROFILE},
            "spec": {
                "accelerator": accelerator,
                "pods": [{"stages": ["train", "evaluate", "serve"], "resources": resources}],
                "allow": {"customCode": has_sandbox()},
            },
        }
    )


def as_default(profile: Manifest) -> Manifest:
    """The profile as the only one: the default, with the local store, and without what only a cluster has."""
    metadata = {"name": profile["metadata"]["name"], "annotations": {DEFAULT_PROFILE_LABEL: "true"}}
    spec = {
        name: value
        for name, value in profile.get("spec", {}).items()
        if name not in {"images", "kueue", "namespaces"}
    }
    return {**profile, "metadata": metadata, "spec": {**spec, "store": {"uri": f"pvc://{STORE}"}}}


def has_sandbox() -> bool:
    """Whether the sandbox of custom metrics works here. It needs seccomp of Linux."""
    return Path("/proc/sys/kernel/seccomp").is_dir()
