# SPDX-License-Identifier: Apache-2.0
"""Compile Triton's CUDA driver as Triton does before its first kernel. Fail if that would fail in a pod.

It runs when the CUDA image is built. It needs no GPU: without one, only libcuda is missing, and the
driver is not linked with it.
"""

import tempfile
from pathlib import Path

import triton
from triton import knobs
from triton.runtime.build import compile_so_from_file


def main() -> None:
    """Raise RuntimeError if there is no compiler, CalledProcessError if a header is missing."""
    backend = Path(triton.__file__).parent / "backends" / "nvidia"
    with tempfile.TemporaryDirectory() as cache:
        knobs.cache.dir = cache
        compile_so_from_file(str(backend / "driver.c"), "cuda_utils", include_dirs=[str(backend / "include")])


if __name__ == "__main__":
    main()
