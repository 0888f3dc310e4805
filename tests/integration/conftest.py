"""A control plane with our CRDs, a namespace for each test, and operator processes."""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakekubelet import FakeKubelet
from tests.integration import manifests
from tests.integration.api import Api
from tests.integration.operators import Operators
from tests.waiting import eventually
from tools.cluster import ControlPlane
from tools.cluster.audit import AuditLog

ROOT = Path(__file__).parents[2]
NUMBERS = itertools.count()


@pytest.fixture(scope="session")
def control_plane() -> Iterator[ControlPlane]:
    """etcd, API server and controllers, without a node; anew for every run, with our CRDs."""
    # A name of its own, so that two runs on one machine do not meet.
    plane = ControlPlane(f"it-{os.getpid()}")
    with plane:
        plane.kubectl.define(ROOT / "crds")
        yield plane
    plane.purge()


@pytest.fixture(scope="session")
def api(control_plane: ControlPlane) -> Iterator[Api]:
    """The API server as a user with all rights."""
    opened = Api(control_plane.client("user"))
    yield opened
    opened.close()


@pytest.fixture
def namespace(api: Api) -> str:
    """A new namespace; it goes with the control plane."""
    name = f"test-{next(NUMBERS)}"
    api.request("POST", "/api/v1/namespaces", {"metadata": {"name": name}}).raise_for_status()
    eventually(f"the default service account of {name}", lambda: api.get("ServiceAccount", name, "default"))
    return name


@pytest.fixture(scope="session")
def audit(control_plane: ControlPlane) -> AuditLog:
    """What was asked of the API server, and by whom."""
    return AuditLog(control_plane.audit_log)


@pytest.fixture
def operators(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[Operators]:
    """Starts operator processes that see the test's namespace only; they end with the test."""
    started = Operators(control_plane, namespace, tmp_path)
    yield started
    started.stop_all()


@pytest.fixture
def kubelet(api: Api, namespace: str) -> Iterator[FakeKubelet]:
    """Runs the pods of the test's namespace, which has what runs need."""
    manifests.prepare_namespace(api, namespace)
    started = FakeKubelet(api, namespace)
    yield started
    started.close()
