"""The operator installed by its chart on a cluster with a node, and a namespace with a base model in it.

The cluster is the local one, or that of the context KUBE_CONTEXT; in namespaces of its own
(tools/cluster/isolation.py) it begins and ends with the session. Everything is shared by all tests, because
each pod that imports torch costs the two cores seconds.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import manifests, pods
from tests.e2e.pods import Keeper
from tests.e2e.sessions import LaneSession
from tests.e2e.team import Team, new_namespace
from tools.cluster import TestCluster
from tools.cluster.layout import ISOLATED
from tools.demo.access import Access, Object
from tools.demo.install import images, install
from tools.images.references import References


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--requests",
        type=Path,
        metavar="FOLDER",
        help="where the lanes of one run leave what test_rights.py looks at after them",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is said of the whole session is tested at its end; all other tests stay in their order."""
    last = Path(__file__).with_name("test_rights.py")
    items.sort(key=lambda item: item.path == last)


@pytest.fixture(scope="session")
def cluster() -> Iterator[TestCluster]:
    """The local cluster: one that runs and stays, or the session's own."""
    if ISOLATED in os.environ:
        with TestCluster() as cluster:
            yield cluster
    else:
        yield TestCluster()


@pytest.fixture(scope="session")
def session(request: pytest.FixtureRequest, cluster: TestCluster) -> Iterator[LaneSession]:
    """What is asked of the local cluster from here on; left for test_rights.py at the end of a lane.

    The disasters come before it: while a cluster is damaged, requests may be refused that were allowed.
    """
    session = LaneSession.begins(request, cluster.audit_log)
    yield session
    folder: Path | None = request.config.option.requests
    if folder is not None:
        session.leave(folder, cluster.layout.name)


@pytest.fixture(scope="session")
def access(cluster: TestCluster) -> Access:
    """The cluster, with all rights."""
    return Access.from_environment()


@pytest.fixture(scope="session")
def refs(access: Access, session: LaneSession) -> References:
    """The images of these sources, with the operator installed from them."""
    refs = images()
    install(access, refs)
    return refs


@pytest.fixture(scope="session")
def profiles(refs: References, access: Access) -> Iterator[None]:
    """What the platform team offers."""
    made = [manifests.profile(manifests.CPU), manifests.profile(manifests.GPU, "nvidia.com/gpu")]
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": made})
    access.kubectl("apply", "--server-side", "--force-conflicts", "--filename=-", text=text)
    yield
    access.kubectl("delete", "computeprofiles", manifests.CPU, manifests.GPU)


@pytest.fixture(scope="session")
def team(access: Access, profiles: None) -> Iterator[Team]:
    """A namespace that takes restricted pods only, with the claims that a team makes."""
    with new_namespace(access, "team", "restricted") as team:
        team.apply(manifests.claim("artifacts"), manifests.claim("models"))
        yield team


@pytest.fixture(scope="session")
def keeper(team: Team, refs: References) -> Keeper:
    """Access to the claims, with the tiny model in `models`."""
    return pods.keep_model(team, refs.operator)


@pytest.fixture(scope="session")
def begun(request: pytest.FixtureRequest, team: Team, keeper: Keeper) -> None:
    """What the chosen tests wait for, applied at once: pods come one after another of themselves.

    First what most tests need, then what the function `begin` of each module applies.
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
    """The Dataset that most runs train on, prepared; every answer in it is `billing`."""
    return team.until("Dataset", "tickets", "Ready")


@pytest.fixture(scope="session")
def routing(team: Team, begun: None) -> Object:
    """A run on a GPU that has cleared its bar, at its end; an endpoint has waited for it."""
    return team.until("FineTuneJob", "routing", "Ready")


@pytest.fixture(scope="session")
def support(team: Team, routing: Object) -> Object:
    """The endpoint that follows the line of `routing`, serving it."""
    return team.until("InferenceDeployment", "support", "Ready")
