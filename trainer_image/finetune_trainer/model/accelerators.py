# SPDX-License-Identifier: Apache-2.0
"""Checks that a stage which was given accelerators can use them, before it does any work."""

from pathlib import Path
from typing import Final

import torch

from finetune_trainer.contract.vocabulary import ExitCode, FailureReason
from finetune_trainer.runtime.failure import StageFailure

MIN_CUBLAS_BYTES: Final = 1 << 20
"""A smaller libcublas is a stub: the `cpu` variant of the image has stubs instead of CUDA's libraries."""


def check_accelerators(requested: int) -> None:
    """Raise StageFailure if the pod requests accelerators and this image or its node has none.

    WRONG_IMAGE fails the run at once. DEVICE_NOT_FOUND is retried, because another node may be in order.

    Args:
        requested: accelerators of the pod; 0 checks nothing, so a stage without them runs in any image.
    """
    if requested == 0:
        return
    if not has_gpu_libraries():
        raise StageFailure(
            FailureReason.WRONG_IMAGE,
            f"the pod requests {_count(requested)}, but its image is the trainer's variant for CPUs, without"
            " CUDA: build the cuda variant with make images VARIANT=cuda, and name it in"
            " spec.images.trainer of the ComputeProfile, or in trainerImage of the chart for all profiles;"
            " then create a new FineTuneJob",
        )
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found < requested:
        raise StageFailure(
            FailureReason.DEVICE_NOT_FOUND,
            f"the pod requests {_count(requested)}, and PyTorch {torch.__version__} finds {found}: check that"
            " nvidia-smi works on the node, that its driver supports CUDA"
            f" {torch.version.cuda or torch.version.hip}, and that spec.runtimeClassName of the"
            " ComputeProfile names a runtime with GPU support",
            ExitCode.INTERNAL,
        )


def has_gpu_libraries(packages: Path | None = None) -> bool:
    """Whether PyTorch was built for GPUs and its libraries are not stubs.

    Args:
        packages: folder of the installed packages; None for that of PyTorch.
    """
    if torch.version.cuda is None and torch.version.hip is None:
        return False
    folder = packages or Path(torch.__file__).parents[1]
    # Where CUDA is not a package of Python, PyTorch has its libraries from the system.
    libraries = list((folder / "nvidia").glob("**/libcublas.so*"))
    return not libraries or any(path.stat().st_size >= MIN_CUBLAS_BYTES for path in libraries)


def _count(number: int) -> str:
    return f"{number} accelerator{'' if number == 1 else 's'}"
