# SPDX-License-Identifier: Apache-2.0
"""The real controllers of Flux as processes, and what they report about Kustomizations and HelmReleases."""

import itertools
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import httpx

from tests.integration.api import Api, Object
from tests.integration.manifests import condition
from tests.waiting import eventually
from tools.cluster import ControlPlane
from tools.cluster.layout import LOOPBACK, free_port
from tools.cluster.processes import WITH_PARENT
from tools.peers.toolchain import FLUX, FLUX_DEFINITIONS

NAMESPACE: Final = "flux-system"
START_SECONDS: Final = 60
REQUESTED: Final = "reconcile.fluxcd.io/requestedAt"
COMMON: Final = ("--events-addr=", "--metrics-addr=0", "--watch-all-namespaces=true")
CANCELLED: Final = "--feature-gates=CancelHealthCheckOnNewRevision=true"
NUMBERS: Final = itertools.count(1)


@contextmanager
def control_plane(name: str, team: str) -> Iterator[tuple[ControlPlane, Api]]:
    """A control plane with the definitions of Flux and a namespace for a team."""
    with ExitStack() as stack:
        plane = ControlPlane(f"{name}-{os.getpid()}")
        stack.callback(plane.purge)
        stack.enter_context(plane)
        plane.kubectl.define(FLUX_DEFINITIONS)
        for namespace in (NAMESPACE, team):
            plane.kubectl.run("create", "namespace", namespace)
        api = Api(plane.client("user"))
        stack.callback(api.close)
        yield plane, api


@contextmanager
def controllers(plane: ControlPlane, folder: Path, names: Sequence[str] = FLUX.programs) -> Iterator[None]:
    """Run controllers during the block."""
    artifacts = folder / "artifacts"
    artifacts.mkdir()
    storage = f"{LOOPBACK}:{free_port()}"
    options = {
        "source-controller": (
            f"--storage-path={artifacts}",
            f"--storage-addr={storage}",
            f"--storage-adv-addr={storage}",
        ),
        "kustomize-controller": ("--requeue-dependency=1s", CANCELLED),
        "helm-controller": ("--requeue-dependency=1s",),
    }
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(_running(plane, name, options[name], folder))
        yield


@contextmanager
def _running(plane: ControlPlane, name: str, options: tuple[str, ...], folder: Path) -> Iterator[None]:
    health, log = f"{LOOPBACK}:{free_port()}", folder / f"{name}.log"
    environment = {
        "KUBECONFIG": str(plane.client(name)),
        "RUNTIME_NAMESPACE": NAMESPACE,
        "PATH": os.environ["PATH"],
        "TMPDIR": str(folder),
    }
    command = [*WITH_PARENT, str(FLUX.program(name)), f"--health-addr={health}", *options, *COMMON]
    with (
        log.open("w") as output,
        subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT) as process,
    ):
        try:
            eventually(f"{name} is healthy", lambda: _is_up(health), START_SECONDS, log.read_text)
            yield
        finally:
            process.terminate()


def _is_up(address: str) -> bool:
    try:
        return httpx.get(f"http://{address}/healthz", trust_env=False).is_success
    except httpx.TransportError:
        return False


class Reconciled:
    """The objects of one kind that a controller reconciles."""

    kind: str
    namespace: str

    def __init__(self, api: Api) -> None:
        self.api = api

    def get(self, name: str) -> Object:
        """An object."""
        found = self.api.get(self.kind, self.namespace, name)
        assert found is not None
        return found

    def ready(self, name: str) -> Object:
        """The condition Ready of an object."""
        return condition(self.get(name), "Ready")

    def reconcile(self, *names: str, seconds: float = 60) -> None:
        """Request a reconciliation of objects, and wait until it is done."""
        requests = [(name, request(self.api, self.kind, self.namespace, name)) for name in names]
        for name, requested in requests:
            eventually(
                f"{name} is reconciled",
                partial(self._has_handled, name, requested),
                seconds,
                partial(self.get, name),
            )

    def _has_handled(self, name: str, requested: str) -> bool:
        found = self.get(name)
        is_handled = found["status"].get("lastHandledReconcileAt") == requested
        return bool(is_handled and condition(found, "Ready")["status"] != "Unknown")


class Flux(Reconciled):
    """The Kustomizations of one repository."""

    kind = "Kustomization"
    namespace = NAMESPACE

    def __init__(self, api: Api, repository: str) -> None:
        super().__init__(api)
        self._repository = repository

    def notify(self) -> None:
        """Request that the repository is fetched, as a webhook does."""
        request(self.api, "GitRepository", NAMESPACE, self._repository)

    def until_applied(self, name: str, commit: str, seconds: float = 60) -> None:
        """Wait until a Kustomization has applied the commit and is Ready."""
        eventually(
            f"{name} is Ready at {commit}",
            lambda: self._is_applied(name, commit) and self.ready(name).get("status") == "True",
            seconds,
            lambda: self.get(name)["status"],
        )

    def until_failed(self, name: str, seconds: float = 60) -> str:
        """Wait until a health check of a Kustomization has failed, and return its message."""
        eventually(
            f"{name} has failed",
            lambda: self.ready(name).get("reason") == "HealthCheckFailed",
            seconds,
            lambda: self.get(name)["status"],
        )
        return str(self.ready(name)["message"])

    def _is_applied(self, name: str, commit: str) -> bool:
        return str(self.get(name).get("status", {}).get("lastAppliedRevision", "")).endswith(commit)


def request(api: Api, kind: str, namespace: str, name: str) -> str:
    """Request a reconciliation of an object, and return the value that its status will name as handled."""
    requested = f"request {next(NUMBERS)}"
    api.patch(kind, namespace, name, {"metadata": {"annotations": {REQUESTED: requested}}})
    return requested
