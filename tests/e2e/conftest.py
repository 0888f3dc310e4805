# SPDX-License-Identifier: Apache-2.0
"""Fixtures: the operator, installed with its chart on a cluster with a node, and a team's namespace.

The cluster is the local one, or that of the context KUBE_CONTEXT. In isolated namespaces
(tools/cluster/linux_namespaces.py) the session starts and stops its own cluster. All tests share the objects,
because each pod that imports torch takes seconds of processor time.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from finetune_client.backend import Object
from tests.e2e import manifests, pods
from tests.e2e.pods import Keeper
from tests.e2e.sessions import LaneSession
from tests.e2e.team import Team, new_namespace
from tools.cluster import TestCluster
from tools.cluster.layout import ISOLATED
from tools.cluster.node import GPU_RESOURCE
from tools.demo.admin_access import AdminAccess
from tools.demo.install import images, install
from tools.images.tags import References

MAX_SECONDS: Final = 1800
"""Maximum duration of a test and its fixtures, on a busy machine."""

AT_THE_END: Final = [Path(__file__).with_name(name) for name in ("test_analysis.py", "test_rights.py")]
"""Modules for the end, in order: one loads endpoints until their figures are significant, which takes minutes
instead of seconds beside the training of all modules; one checks the requests of the whole session."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--requests",
        type=Path,
        metavar="FOLDER",
        help="folder in which the lanes leave records for test_rights.py",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Move modules to the end, and bound each test with the fixtures that it waits for."""
    folder = Path(__file__).parent
    items.sort(key=lambda item: AT_THE_END.index(item.path) if item.path in AT_THE_END else -1)
    for item in items:
        if item.path.parent == folder:
            item.add_marker(pytest.mark.timeout(MAX_SECONDS))


@pytest.fixture(scope="session")
def cluster() -> Iterator[TestCluster]:
    """The local cluster, which keeps running, or the session's own."""
    if ISOLATED in os.environ:
        with TestCluster() as cluster:
            yield cluster
    else:
        yield TestCluster()


@pytest.fixture(scope="session")
def session(request: pytest.FixtureRequest, cluster: TestCluster) -> Iterator[LaneSession]:
    """Record of the requests to the local cluster from now on, for test_rights.py.

    The disasters run before it: while a cluster is damaged, it may refuse requests that are allowed.
    """
    session = LaneSession.begins(request, cluster.audit_log)
    yield session
    folder: Path | None = request.config.option.requests
    if folder is not None:
        session.leave(folder, cluster.layout.name)


@pytest.fixture(scope="session")
def access(cluster: TestCluster) -> AdminAccess:
    """Access to the cluster with all rights."""
    return AdminAccess.from_environment()


@pytest.fixture(scope="session")
def refs(access: AdminAccess, session: LaneSession) -> References:
    """The images of the present sources; the operator is installed from them."""
    refs = images()
    install(access, refs)
    return refs


@pytest.fixture(scope="session")
def profiles(refs: References, access: AdminAccess) -> Iterator[None]:
    """The platform team's ComputeProfiles."""
    created = [manifests.profile(manifests.CPU), manifests.profile(manifests.GPU, GPU_RESOURCE)]
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": created})
    access.kubectl("apply", "--server-side", "--force-conflicts", "--filename=-", text=text)
    yield
    access.kubectl("delete", "computeprofiles", manifests.CPU, manifests.GPU)


@pytest.fixture(scope="session")
def team(access: AdminAccess, profiles: None) -> Iterator[Team]:
    """A namespace that accepts only restricted pods, with the team's claims."""
    with new_namespace(access, "team", "restricted") as team:
        team.apply(manifests.claim("artifacts"), manifests.claim("models"))
        yield team


@pytest.fixture(scope="session")
def keeper(team: Team, refs: References) -> Keeper:
    """Access to the claims, with the tiny model in `models`."""
    return pods.keep_model(team, refs.operator)


@pytest.fixture(scope="session")
def node(access: AdminAccess, refs: References) -> Iterator[Team]:
    """A namespace with a pod that may kill processes of the node."""
    with new_namespace(access, "node", "privileged") as team:
        team.apply(pods.killer(refs.operator))
        team.kubectl("wait", "--for=condition=Ready", "pod/killer", "--timeout=120s")
        yield team


@pytest.fixture(scope="session")
def begun(request: pytest.FixtureRequest, team: Team, keeper: Keeper) -> None:
    """Apply the objects of all selected tests at once, so that their pods run without pauses.

    First the objects that most tests need, then those of the function `begin` of each module.
    """
    items = request.session.items
    team.apply(
        manifests.configmap("tickets", manifests.jsonl("billing")), manifests.dataset("tickets", "tickets")
    )
    if any("routing" in item.fixturenames for item in items if isinstance(item, pytest.Function)):
        team.apply(
            manifests.endpoint("support", "routing"),
            manifests.finetunejob(
                "routing", compute={"profile": manifests.GPU}, **manifests.judged(*manifests.BAR)
            ),
        )
    for module in dict.fromkeys(item.module for item in items if isinstance(item, pytest.Function)):
        if hasattr(module, "begin"):
            module.begin(team, keeper, request)


@pytest.fixture(scope="session")
def tickets(team: Team, begun: None) -> Object:
    """The prepared Dataset that most runs train on; every answer in it is `billing`."""
    return team.until("Dataset", "tickets", "Ready")


@pytest.fixture(scope="session")
def routing(team: Team, begun: None) -> Object:
    """A completed run on a GPU that passed its gates; an endpoint waits for it."""
    return team.until("FineTuneJob", "routing", "Ready")


@pytest.fixture(scope="session")
def support(team: Team, routing: Object) -> Object:
    """The endpoint that follows the model line of `routing` and serves it."""
    return team.until("InferenceDeployment", "support", "Ready")
