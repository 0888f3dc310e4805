# SPDX-License-Identifier: Apache-2.0
"""The machine: its GPU, its versions compared with the pins, and the kernels that need its compiler."""

import importlib.util
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from finetune_trainer.contract.accelerators import GIBIBYTE, why_unusable
from tests.gpu.errors import GPUCheckFailed, StepNotPossible
from tests.gpu.packages import CARRIED, PINS, pinned_versions
from tests.gpu.scene import GPUFigures, Scene

GIVEN: Final = ("torch", "triton", "numpy", "scipy", "pandas", "pyarrow", "safetensors", "huggingface-hub")
"""Packages that the steps take as the machine has them, in addition to those that may be carried."""
MUST_BE_PINNED: Final = ("transformers", "peft", "trl", "accelerate", "datasets", "bitsandbytes", "pydantic")
"""Packages whose behaviour the trainer depends on: another version shows nothing of the product."""
MIN_TORCH: Final = (2, 11)
ABSENT: Final = "missing"


def machine(scene: Scene) -> GPUFigures:
    """Name, memory and driver of the GPU, and all versions that differ from the pins.

    It fails if a package has another version that the trainer depends on, so that no later step misleads.
    """
    import torch

    pinned = pinned_versions(PINS.read_text())
    installed = {name: _installed(name) for name in sorted({*CARRIED, *GIVEN})}
    figures: GPUFigures = {
        "Python": sys.version.split()[0],
        **{name: installed[name] for name in ("torch", *MUST_BE_PINNED, "triton")},
        "other than pinned": different(installed, pinned),
        "adapted": "; ".join(scene.adapted) or "nothing",
    }
    if scene.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        figures["GPU"] = properties.name
        figures["GPUs"] = torch.cuda.device_count()
        figures["memory, GiB"] = round(properties.total_memory / GIBIBYTE, 1)
        figures["CUDA of PyTorch"] = str(torch.version.cuda)
        if (reason := why_unusable(properties.name, (properties.major, properties.minor))) is not None:
            raise GPUCheckFailed(reason, figures)
    if problems := unusable(installed, pinned):
        raise GPUCheckFailed(
            f"{'; '.join(problems)}: pack the pinned ones with python -m tests.gpu.packages on a machine with"
            " a network, and put the unpacked folder first in PYTHONPATH",
            figures,
        )
    return figures


def different(installed: Mapping[str, str], pinned: Mapping[str, str]) -> str:
    """The packages that have another version than their pin, in one line."""
    found = (
        f"{name} {version_} (pinned: {pinned[name]})"
        for name, version_ in installed.items()
        if name in pinned and version_.partition("+")[0] != pinned[name]
    )
    return ", ".join(found) or "none"


def unusable(installed: Mapping[str, str], pinned: Mapping[str, str]) -> list[str]:
    """Why the steps cannot show the product with these packages, one sentence part each."""
    problems = [
        f"{name} is {installed[name]} and must be {pinned[name]}"
        for name in MUST_BE_PINNED
        if installed[name].partition("+")[0] != pinned[name]
    ]
    problems += [
        f"{name} is {ABSENT}"
        for name, version_ in installed.items()
        if version_ == ABSENT and name not in MUST_BE_PINNED
    ]
    if torch_version(installed["torch"]) < MIN_TORCH:
        problems.append(f"torch is {installed['torch']}: the steps need {_dotted(MIN_TORCH)} at least")
    return problems


def torch_version(text: str) -> tuple[int, ...]:
    """The first two numbers of PyTorch's version."""
    return tuple(int(part) for part in text.split(".")[:2])


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


def needs_gpus(scene: Scene, number: int) -> None:
    """Raise StepNotPossible on a machine with fewer GPUs. A rehearsal has as many processes as it needs."""
    if scene.device != "cuda":
        return
    import torch

    if (found := torch.cuda.device_count()) < number:
        raise StepNotPossible("one GPU" if found == 1 else f"{found} GPUs")


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ABSENT


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))
