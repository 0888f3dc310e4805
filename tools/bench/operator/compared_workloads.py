# SPDX-License-Identifier: Apache-2.0
"""The workloads that FineTuneJobs are compared with, in the same number and each on its own control plane.

Bare Jobs, created by a user, are the lower bound for one Job per run. The controllers of TrainJobs (Kubeflow
Trainer and JobSet) run as processes on the machine of the API server, like the operator in its measurement,
without leader election and without rate limits.
"""

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import httpx
import yaml

from finetune_operator.engine.resources import ResourceType
from tools.bench.operator import workload
from tools.bench.operator.control_planes import client, control_plane, create
from tools.bench.operator.deadlines import until
from tools.bench.operator.request_ledger import JOBSET, TRAINER, USER, RequestLedger, Requests, Spread
from tools.bench.page import BenchError
from tools.bench.program import peak_bytes, processor_seconds
from tools.cluster import ControlPlane, toolchain
from tools.cluster.audit import AuditLog
from tools.cluster.credentials import Authority
from tools.cluster.layout import LOOPBACK, free_port
from tools.cluster.toolchain import KUBEFLOW_TRAINER, download, program


@dataclass(frozen=True, slots=True)
class Floor:
    """Cost of the bare Jobs.

    Attributes:
        jobs: time until the Jobs exist; the Job controller creates pods meanwhile.
        requests: requests of all clients for all Jobs.
    """

    jobs: Spread
    requests: Requests


def measure_floor(jobs: int) -> Floor:
    """Start a control plane, measure, and remove it.

    Raises:
        ClusterError: the control plane did not start.
    """
    with control_plane("floor") as plane:
        return asyncio.run(_measure_bare_jobs(plane, jobs))


async def _measure_bare_jobs(plane: ControlPlane, jobs: int) -> Floor:
    ledger = RequestLedger(AuditLog(plane.audit_log))
    async with client(plane, USER) as user:
        await user.create(workload.namespace())
        await create(user, map(workload.bare_job, range(jobs)))
    await ledger.until_quiet()
    return Floor(ledger.spread(ledger.first_jobs), ledger.requests)


READY_SECONDS: Final = 60.0
LOG_CHARACTERS: Final = 3000
SERVING_CERTIFICATES: Final = Path("k8s-webhook-server", "serving-certs")
"""Folder of the webhook certificate, below the folder for temporary files (default of controller-runtime)."""
INSTALLED: Final = frozenset(
    {"CustomResourceDefinition", "MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"}
)
TRAIN_JOB: Final = ResourceType("trainer.kubeflow.org/v1alpha1", "TrainJob", "trainjobs")

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class PeerController:
    """One of the two controllers.

    Attributes:
        user: its user in the audit log.
        program: name of its program.
        module: Go module with its manifests.
        manifests: folders of that module.
        settings: its configuration without addresses and ports.
    """

    user: str
    program: str
    module: str
    manifests: tuple[str, ...]
    settings: Object


CONTROLLERS: Final = (
    PeerController(
        JOBSET,
        "jobset",
        "sigs.k8s.io/jobset",
        ("config/default",),
        {
            "apiVersion": "config.jobset.x-k8s.io/v1alpha1",
            "internalCertManagement": {"enable": False},
            "clientConnection": {"qps": 500, "burst": 1000},
        },
    ),
    PeerController(
        TRAINER,
        "trainer-controller-manager",
        "github.com/kubeflow/trainer/v2",
        ("manifests/base/crds", "manifests/base/webhook"),
        {
            "apiVersion": "config.trainer.kubeflow.org/v1alpha1",
            "certManagement": {"enable": False},
            "clientConnection": {"qps": 500, "burst": 1000},
        },
    ),
)


@dataclass(frozen=True, slots=True)
class Peer:
    """Cost of the TrainJobs.

    Attributes:
        jobs: time until each TrainJob has its Job; no pod starts.
        requests: requests of all clients for all TrainJobs, until no client writes any more.
        processor_seconds: sum over both controllers.
        peak_bytes: peak memory of Trainer and of JobSet.
    """

    jobs: Spread
    requests: Requests
    processor_seconds: float
    peak_bytes: tuple[int, int]


def measure_peer(jobs: int) -> Peer:
    """Start a control plane with both controllers, measure, and remove it.

    Raises:
        BenchError: a TrainJob got no Job.
        ClusterError: the control plane did not start, or the controllers could not be built.
    """
    toolchain.ensure([KUBEFLOW_TRAINER])
    with control_plane("peer") as plane, TemporaryDirectory() as folder:
        return asyncio.run(_measure_train_jobs(plane, Path(folder), jobs))


async def _measure_train_jobs(plane: ControlPlane, folder: Path, jobs: int) -> Peer:
    async with contextlib.AsyncExitStack() as stack:
        running = [
            await stack.enter_async_context(_running(plane, folder / each.user, each)) for each in CONTROLLERS
        ]
        plane.kubectl.run("apply", "--server-side", "--filename=-", text=yaml.safe_dump(_runtime()))
        user = await stack.enter_async_context(client(plane, USER, TRAIN_JOB))
        await user.create(workload.namespace())
        before = sum(map(processor_seconds, running))
        ledger = RequestLedger(AuditLog(plane.audit_log))
        await create(user, map(_train_job, range(jobs)))
        await ledger.until_quiet(lambda: ledger.have_first_jobs(jobs), f"{jobs:,} TrainJobs with a Job")
        jobset, trainer = map(peak_bytes, running)
        seconds = sum(map(processor_seconds, running)) - before
        return Peer(ledger.spread(ledger.first_jobs), ledger.requests, seconds, (trainer, jobset))


@contextlib.asynccontextmanager
async def _running(plane: ControlPlane, folder: Path, controller: PeerController) -> AsyncIterator[int]:
    """Run the controller for the block; yields its pid when it is ready."""
    serving = folder / SERVING_CERTIFICATES
    serving.mkdir(parents=True)
    identity = Authority(plane.layout.pki).issue(controller.user, hosts=(str(LOOPBACK),))
    (serving / "tls.crt").write_bytes(identity.certificate)
    (serving / "tls.key").write_bytes(identity.key)
    webhook, health = free_port(), free_port()
    _install(plane, controller, f"https://{LOOPBACK}:{webhook}")
    settings = {
        "kind": "Configuration",
        "webhook": {"host": str(LOOPBACK), "port": webhook},
        "metrics": {"bindAddress": "0"},
        "health": {"healthProbeBindAddress": f"{LOOPBACK}:{health}"},
        "leaderElection": {"leaderElect": False},
        **controller.settings,
    }
    configuration, log = folder / "configuration.yaml", folder / "log"
    configuration.write_text(yaml.safe_dump(settings))
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            str(program(controller.program)),
            f"--config={configuration}",
            env={"KUBECONFIG": str(plane.client(controller.user)), "TMPDIR": str(folder), "HOME": "/"},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        await _until_ready(process, f"http://{LOOPBACK}:{health}/readyz", log)
        yield process.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _until_ready(process: asyncio.subprocess.Process, url: str, log: Path) -> None:
    """Wait until the controller is ready.

    Raises:
        BenchError: it ended or was not ready in time; the message ends with its last log lines.
    """

    async def ready() -> bool:
        if process.returncode is not None:
            raise BenchError(f"it ended with exit code {process.returncode}")
        with contextlib.suppress(httpx.TransportError):
            return (await http.get(url)).status_code == HTTPStatus.OK
        return False

    try:
        async with httpx.AsyncClient(trust_env=False) as http:
            await until(ready, READY_SECONDS, f"it was not ready after {READY_SECONDS:.0f} s")
    except BenchError as error:
        raise BenchError(f"the controller of {log.parent.name}: {error}\n{_tail(log)}") from error


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-LOG_CHARACTERS:]


def _install(plane: ControlPlane, controller: PeerController, url: str) -> None:
    """Install the released CRDs and webhooks, with URLs of the process instead of Services."""
    module = download(KUBEFLOW_TRAINER.source, controller.module)
    authority = base64.b64encode(Authority(plane.layout.pki).certificate).decode()
    documents = [
        document
        for folder in controller.manifests
        for document in yaml.safe_load_all(plane.kubectl.run("kustomize", str(module / folder)))
        if document["kind"] in INSTALLED
    ]
    for document in documents:
        for webhook in _client_configurations(document):
            path = webhook.pop("service").get("path", "/")
            webhook.update(url=url + path, caBundle=authority)
    plane.kubectl.define(yaml.safe_dump_all(documents))


def _client_configurations(document: Object) -> Iterator[Object]:
    for webhook in document.get("webhooks", ()):
        yield webhook["clientConfig"]
    conversion = document.get("spec", {}).get("conversion", {}).get("webhook")
    if conversion:
        yield conversion["clientConfig"]


def _runtime() -> Object:
    """A runtime with one node and one container that never starts."""
    container = {"name": "node", "image": "localhost/none", "command": ["true"]}
    node = {
        "name": "node",
        "template": {
            "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
            "spec": {"template": {"spec": {"containers": [container]}}},
        },
    }
    return {
        "apiVersion": TRAIN_JOB.api_version,
        "kind": "ClusterTrainingRuntime",
        "metadata": {"name": "bare", "labels": {"trainer.kubeflow.org/framework": "plainml"}},
        "spec": {"mlPolicy": {"numNodes": 1}, "template": {"spec": {"replicatedJobs": [node]}}},
    }


def _train_job(number: int) -> Object:
    return {
        "apiVersion": TRAIN_JOB.api_version,
        "kind": "TrainJob",
        "metadata": {"name": f"run-{number:05d}", "namespace": workload.NAMESPACE},
        "spec": {"runtimeRef": {"name": "bare"}},
    }
