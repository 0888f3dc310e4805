# SPDX-License-Identifier: Apache-2.0
"""The machine: its GPU, and the kernels that need its compiler."""

import importlib.util
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from finetune_trainer.contract.accelerators import GIBIBYTE
from tests.gpu.errors import GPUCheckFailed, StepNotPossible
from tests.gpu.scene import GPUFigures, Scene

PACKAGES: Final = ("torch", "transformers", "peft", "trl", "accelerate", "triton", "bitsandbytes")


def machine(scene: Scene) -> GPUFigures:
    """Name, memory and driver of the GPU, and the versions of the packages."""
    import torch

    figures: GPUFigures = {"Python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            figures[package] = version(package)
        except PackageNotFoundError:
            figures[package] = "missing"
    if scene.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        figures["GPU"] = properties.name
        figures["memory, GiB"] = round(properties.total_memory / GIBIBYTE, 1)
        figures["CUDA of PyTorch"] = str(torch.version.cuda)
    return figures


def kernels(scene: Scene) -> GPUFigures:
    """Compile and run a Triton kernel, as the losses of TRL do at their first step."""
    if scene.device != "cuda":
        raise StepNotPossible("Triton compiles for a GPU only")
    import torch

    from tests.gpu.kernel import doubled

    numbers = torch.arange(1000, device="cuda", dtype=torch.float32)
    if not torch.equal(doubled(numbers), numbers * 2):
        raise GPUCheckFailed("the Triton kernel computes something else")
    return {"Triton kernel": "compiled and right"}


def needs(*packages: str) -> None:
    """Raise StepNotPossible for packages that are not installed."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise StepNotPossible(f"not installed: {', '.join(missing)}")
