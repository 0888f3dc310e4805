# SPDX-License-Identifier: Apache-2.0
"""What the suite of a release needs: complete images in buildah's store, and programs of a registry."""

import shutil
from typing import Final

from tools.cluster.toolchain import CRANE, HELM, ORAS, PRIVATE_REGISTRY, VERIFY_BUNDLE, ensure
from tools.images.base import base_image
from tools.images.build import build_complete
from tools.images.buildah import Buildah
from tools.images.tags import LOCAL, Variant, image_references
from tools.peers.toolchain import COSIGN

TOOLS: Final = (CRANE, HELM, ORAS, PRIVATE_REGISTRY, VERIFY_BUNDLE, COSIGN)


def install_release() -> None:
    """Build the programs and the images unless they are there.

    Raises:
        ClusterError: a program could not be built.
        ImageError: an image could not be built.
        subprocess.CalledProcessError: a tool failed; its message is on the terminal.
    """
    ensure(TOOLS)
    build_complete(Variant.CPU)


def is_release_installed() -> bool:
    """Whether the images of the present sources and the programs are there."""
    if shutil.which("buildah") is None or not all(tool.is_built() for tool in TOOLS):
        return False
    buildah = Buildah()
    names = image_references(base_image(buildah), Variant.CPU, LOCAL)
    return all(buildah.has(name) for name in names)
