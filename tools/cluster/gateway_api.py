# SPDX-License-Identifier: Apache-2.0
"""The definitions of the Gateway API, from its Go module."""

import shutil
from pathlib import Path
from typing import Final

from tools.bootstrap.uv import cache_directory
from tools.cluster.toolchain import download, pinned

MODULE: Final = "sigs.k8s.io/gateway-api"
SOURCE: Final = Path(__file__).parent / "programs" / "gateway-api"
CHANNEL: Final = "standard"


def version() -> str:
    """The pinned version, such as v1.6.1."""
    return pinned(SOURCE, MODULE)


def definitions() -> Path:
    """Folder of the CustomResourceDefinitions of the standard channel, in the cache.

    Raises:
        ClusterError: the Go compiler is missing, or the module could not be downloaded.
    """
    target = cache_directory() / "gateway-api" / f"{CHANNEL}-{version()}"
    if target.exists():
        return target
    released = download(SOURCE, MODULE) / "config" / "crd" / CHANNEL
    part = target.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for file in released.glob("*.yaml"):
        shutil.copyfile(file, part / file.name)
    part.rename(target)
    return target


def route_definition() -> Path:
    """File of the definition of HTTPRoute, the only kind that the operator uses."""
    return definitions() / "gateway.networking.k8s.io_httproutes.yaml"
