# SPDX-License-Identifier: Apache-2.0
"""traefik as a process that serves Gateways."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import httpx

from tools.cluster.commands import until
from tools.cluster.processes import WITH_PARENT
from tools.peers.toolchain import TRAEFIK

CLASS: Final = {
    "apiVersion": "gateway.networking.k8s.io/v1",
    "kind": "GatewayClass",
    "metadata": {"name": "traefik"},
    "spec": {"controllerName": "traefik.io/gateway-controller"},
}
"""Of the Gateways that it serves."""
ADMIN_PORT: Final = 8001
START_SECONDS: Final = 60


@contextmanager
def running(kubeconfig: Path, port: int, folder: Path) -> Iterator[None]:
    """The gateway runs during the block and listens on `port` of 127.0.0.1. Its log is in `folder`.

    Raises:
        ClusterError: it did not start.
    """
    options = (
        "--providers.kubernetesgateway=true",
        "--providers.kubernetesgateway.statusaddress.ip=127.0.0.1",
        f"--entrypoints.web.address=127.0.0.1:{port}",
        f"--entrypoints.traefik.address=127.0.0.1:{ADMIN_PORT}",
        "--ping=true",
        "--global.checknewversion=false",
        "--global.sendanonymoususage=false",
    )
    log = folder / "traefik.log"
    with (
        log.open("w") as output,
        subprocess.Popen(
            [*WITH_PARENT, TRAEFIK.program("traefik"), *options],
            env={"KUBECONFIG": str(kubeconfig), "PATH": os.environ["PATH"]},
            stdout=output,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        try:
            until(f"traefik, whose log is in {log}", _answers, START_SECONDS)
            yield
        finally:
            process.terminate()


def _answers() -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{ADMIN_PORT}/ping", trust_env=False).is_success
    except httpx.TransportError:
        return False
