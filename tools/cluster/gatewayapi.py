"""The definitions of the Gateway API, from its Go module."""

import json
import re
import shutil
from pathlib import Path
from typing import Final

from tools.bootstrap.cache import cache_directory
from tools.cluster.commands import run
from tools.cluster.toolchain import go_compiler

MODULE: Final = "sigs.k8s.io/gateway-api"
SOURCE: Final = Path(__file__).parent / "programs" / "gateway-api"
KINDS: Final = ("gatewayclasses", "gateways", "httproutes")


def version() -> str:
    """The pinned version, such as v1.6.1."""
    (found,) = re.findall(
        rf"^require {re.escape(MODULE)} (v\S+)", (SOURCE / "go.mod").read_text(), re.MULTILINE
    )
    return str(found)


def definitions() -> Path:
    """Folder of the CustomResourceDefinitions of GatewayClass, Gateway and HTTPRoute, in the cache.

    Raises:
        ClusterError: there is no Go compiler, or the module could not be downloaded.
    """
    target = cache_directory() / "gateway-api" / version()
    if target.exists():
        return target
    # go.sum is checked because the folder is a Go module.
    query = ("mod", "download", "-json", f"{MODULE}@{version()}")
    found = json.loads(run([go_compiler(), "-C", str(SOURCE), *query]))
    released = Path(found["Dir"]) / "config" / "crd" / "standard"
    part = target.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for kind in KINDS:
        shutil.copy(released / f"gateway.networking.k8s.io_{kind}.yaml", part)
    part.rename(target)
    return target
