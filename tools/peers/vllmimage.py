# SPDX-License-Identifier: Apache-2.0
"""An image of vLLM for CPUs, for endpoints of the test cluster. It is for tests, and is never pushed."""

import fcntl
import shlex
import shutil
import sys
from pathlib import Path, PurePosixPath
from typing import Final

from tools.bootstrap.uv import cache_directory
from tools.images import base
from tools.images.buildah import Buildah, ImageError
from tools.images.cpu_packages import COMPILE, Dependencies, link_tree
from tools.images.node_images import Node
from tools.images.tags import content_key
from tools.peers import vllm

DOCKERFILE: Final = Path(__file__).with_name("vllm.Dockerfile")
FILES: Final = ("tools/peers/vllm.Dockerfile", "tools/peers/vllmimage.py")
"""Files that determine the image, besides those of the packages."""
PURELIB: Final = ("python3", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")


def reference(buildah: Buildah) -> str:
    """Full name of the image, built or not."""
    return f"localhost/vllm-cpu:{content_key(FILES, base.base_image(buildah), vllm.environment().name)}"


def is_installed() -> bool:
    """Whether the image and its packages are on this machine."""
    if not vllm.is_installed() or shutil.which("buildah") is None:
        return False
    buildah = Buildah()
    name = reference(buildah)
    return buildah.has(name) and _folder(name).exists()


def install() -> None:
    """Build the image in buildah's store, and prepare its packages, unless they are there.

    Raises:
        ImageError: a build failed.
        subprocess.CalledProcessError: uv or the linker failed; its message is on the terminal.
    """
    vllm.install()
    buildah = Buildah()
    name = reference(buildah)
    lock = cache_directory() / "images" / "lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not buildah.has(name):
            print(f"Building {name} …", file=sys.stderr, flush=True)
            parent = base.ensure(buildah, base.base_image(buildah))
            buildah.build(DOCKERFILE, name, base=parent)
        _packages(buildah, name)


def load(node: Node) -> str:
    """Load the installed image into a node that does not have it. Returns its name.

    Raises:
        ImageError: it is not installed.
    """
    buildah = Buildah()
    name = reference(buildah)
    if not node.has(name):
        packages, layers = _packages(buildah, name), buildah.layers(name)
        with buildah.exported(name) as image:
            node.add_with_packages(name, image, packages, layers, supply=lambda: buildah.exported(name))
    return name


def _packages(buildah: Buildah, image: str) -> Dependencies:
    """vLLM's packages, compiled for the Python of the image."""
    destination = PurePosixPath(buildah.output(image, *PURELIB))
    (installed,) = vllm.environment().glob("lib/python*/site-packages")
    if installed.parent.name != destination.parent.name:
        raise ImageError(
            f"the image has {destination.parent.name}, and vLLM is installed for {installed.parent.name}:"
            " run the tests with the Python version of the image"
        )
    folder = _folder(image)
    if not folder.exists():
        part = folder.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        link_tree(installed, part)
        # A file that does not compile is one of another version of Python, which nothing imports.
        command = f"{shlex.join(COMPILE)} {destination} >/dev/null 2>&1 || true"
        buildah.output(image, "sh", "-c", command, volume=(part, str(destination)))
        part.rename(folder)
    return Dependencies(folder, destination)


def _folder(image: str) -> Path:
    return cache_directory() / "images" / f"vllm-{image.rpartition(':')[2]}"
