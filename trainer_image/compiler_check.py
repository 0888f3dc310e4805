"""Compile Triton's CUDA driver as Triton does before its first kernel; fails where that would fail in a pod.

Run when the CUDA image is built. It needs no GPU: what is missing then is only libcuda, to link with.
"""

import tempfile
from pathlib import Path

import triton
from triton import knobs
from triton.runtime.build import compile_so_from_file


def main() -> None:
    """Raises RuntimeError where no compiler is found, CalledProcessError where a header is missing."""
    backend = Path(triton.__file__).parent / "backends" / "nvidia"
    with tempfile.TemporaryDirectory() as cache:
        knobs.cache.dir = cache
        compile_so_from_file(str(backend / "driver.c"), "cuda_utils", include_dirs=[str(backend / "include")])


if __name__ == "__main__":
    main()
