# SPDX-License-Identifier: Apache-2.0
"""Fixtures: a control plane with our CRDs, a namespace per test, and operator processes."""

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from finetune_trainer.contract.configs import StageConfig
from finetune_trainer.contract.results import StageResult
from tests.fakekubelet import FakeKubelet
from tests.integration import manifests
from tests.integration.api import Api
from tests.integration.installation import SYSTEM, rendered
from tests.integration.operators import Operators
from tests.waiting import eventually
from tools.cluster import ControlPlane
from tools.cluster.audit import AuditLog
from tools.cluster.toolchain import KUBERNETES, Tool
from tools.fakepods import succeeded
from tools.peers.toolchain import OLDER_KUBERNETES

ROOT = Path(__file__).parents[2]
NUMBERS = itertools.count()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--kubernetes",
        choices=tuple(OLDER_KUBERNETES),
        help="older minor version of the API server and its controllers",
    )


@pytest.fixture(scope="session")
def kubernetes(request: pytest.FixtureRequest) -> Tool:
    """API server and controllers: those of the test cluster, or of the version --kubernetes."""
    # tests/faults uses the fixtures of this module, and has no such option.
    version = request.config.getoption("--kubernetes", None)
    return KUBERNETES if version is None else OLDER_KUBERNETES[version]


@pytest.fixture(scope="session")
def control_plane(kubernetes: Tool) -> Iterator[ControlPlane]:
    """A new control plane without a node, with our CRDs."""
    # Its own name, so that concurrent sessions on one machine do not share it.
    plane = ControlPlane(f"it-{os.getpid()}", kubernetes)
    with plane:
        plane.kubectl.define(ROOT / "crds")
        yield plane
    plane.purge()


@pytest.fixture(scope="session")
def api(control_plane: ControlPlane) -> Iterator[Api]:
    """Access to the API server as a user with all rights."""
    opened = Api(control_plane.client("user"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def installed(control_plane: ControlPlane) -> Iterator[ControlPlane]:
    """The chart in a namespace that enforces the restricted policy; no node runs its pod."""
    kubectl, manifests = control_plane.kubectl, rendered()
    if not kubectl.succeeds("get", "namespace", SYSTEM):
        kubectl.run("create", "namespace", SYSTEM)
    kubectl.run("label", "--overwrite", "namespace", SYSTEM, "pod-security.kubernetes.io/enforce=restricted")
    eventually(
        "the default service account",
        lambda: kubectl.succeeds("get", "serviceaccount/default", f"--namespace={SYSTEM}"),
    )
    kubectl.run("apply", "--server-side", "--validate=strict", "--filename=-", text=manifests)
    yield control_plane
    kubectl.run("delete", "--ignore-not-found", "--filename=-", text=manifests)


@pytest.fixture
def namespace(api: Api) -> str:
    """A new namespace."""
    name = f"test-{next(NUMBERS)}"
    api.request("POST", "/api/v1/namespaces", {"metadata": {"name": name}}).raise_for_status()
    eventually(f"the default service account of {name}", lambda: api.get("ServiceAccount", name, "default"))
    return name


@pytest.fixture(scope="session")
def audit(control_plane: ControlPlane) -> AuditLog:
    """The audit log of the API server."""
    return AuditLog(control_plane.audit_log)


@pytest.fixture
def operators(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[Operators]:
    """Starts operator processes that watch only the test's namespace and end with the test."""
    started = Operators(control_plane, namespace, tmp_path)
    yield started
    started.stop_all()


@pytest.fixture
def outcome() -> Callable[[StageConfig], StageResult | None]:
    """Results of stages. Modules whose stages have other results override it."""
    return succeeded


@pytest.fixture
def kubelet(
    api: Api, namespace: str, outcome: Callable[[StageConfig], StageResult | None]
) -> Iterator[FakeKubelet]:
    """A fake kubelet for the test's namespace, which has the prerequisites of runs."""
    manifests.prepare_namespace(api, namespace)
    started = FakeKubelet(api, namespace, outcome)
    yield started
    started.close()
