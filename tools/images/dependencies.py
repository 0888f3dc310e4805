# SPDX-License-Identifier: Apache-2.0
"""The trainer's Python packages for machines without a GPU, as a folder in the cache."""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from tools.bootstrap.uv import ROOT, Uv, cache_directory
from tools.images.buildah import Buildah
from tools.images.trim import trim

CONSTRAINTS: Final = ROOT / "constraints" / "trainer.txt"
COMPILE: Final = (
    *("python3", "-m", "compileall", "-q", "-j", "0", "--invalidation-mode", "unchecked-hash"),
    *("-x", "/torch/testing/_internal/py312_"),  # written for a later Python
)


@dataclass(frozen=True)
class Dependencies:
    """Packages for an image: `folder` on this machine, `destination` in the image."""

    folder: Path
    destination: PurePosixPath


def cpu_dependencies(buildah: Buildah, python_stage: str, key: str) -> Dependencies:
    """The packages of constraints/trainer.txt without GPU code, compiled for the Python of `python_stage`.

    The files are hard links into uv's cache: do not edit them in place.

    Args:
        buildah: runs the image's Python.
        python_stage: image whose Python uses the packages.
        key: name of the content; a folder with this key is reused.

    Raises:
        subprocess.CalledProcessError: uv or the linker failed; its message is on the terminal.
        ImageError: the packages could not be compiled.
    """
    destination = buildah.output(
        python_stage, "python3", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"
    )
    dependencies = Dependencies(cache_directory() / "images" / f"cpu-{key}", PurePosixPath(destination))
    if dependencies.folder.exists():
        return dependencies
    print("Preparing the trainer's packages without CUDA (about a minute) …", file=sys.stderr, flush=True)
    full, part = (dependencies.folder.with_suffix(suffix) for suffix in (".full", ".part"))
    for leftover in (full, part):
        shutil.rmtree(leftover, ignore_errors=True)
    version = dependencies.destination.parent.name.removeprefix("python")
    install = ("pip", "install", "--quiet", "--no-deps", "--require-hashes", "--requirement", CONSTRAINTS)
    Uv().run(*install, "--target", full, "--python-version", version)
    trim(full, part)
    shutil.rmtree(full)
    # Compiled at their destination, so that tracebacks have the right paths.
    buildah.output(python_stage, *COMPILE, destination, volume=(part, destination))
    part.rename(dependencies.folder)
    return dependencies
