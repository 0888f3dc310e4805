# SPDX-License-Identifier: Apache-2.0
"""An endpoint behind a real gateway, traefik: exact weights, pinned requests, and rollouts under load."""

import os
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

import pytest
import yaml

from finetune_operator.manifests.endpoint import REVISION_HEADER
from finetune_operator.manifests.engines.engine_inputs import DRAIN_SECONDS
from tests.integration import manifests
from tests.integration.api import Api, Object
from tests.integration.operators import Operators
from tests.integration.team import Team
from tests.peers.gatewaybackends import EVENTS, ServingKubelet, add_network
from tests.peers.gatewayclients import Client, Load, count
from tests.waiting import eventually
from tools.cluster import ControlPlane, gateway_api
from tools.cluster.layout import ISOLATED
from tools.peers import traefik

ROOT: Final = Path(__file__).parents[2]
EXAMPLE: Final = ROOT / "examples" / "gateway"
NAMESPACE: Final = "team"
PINNED: Final = REVISION_HEADER.replace("-", "_")
WAIT_SECONDS: Final = 60

pytestmark = pytest.mark.skipif(
    ISOLATED not in os.environ, reason="needs a network of its own: run `python -m tools.peers test`"
)


@pytest.fixture(scope="module")
def control_plane() -> Iterator[ControlPlane]:
    """A control plane with the Gateway API, a Gateway and our kinds."""
    add_network()
    plane = ControlPlane("gateway")
    with plane:
        plane.kubectl.define(ROOT / "crds")
        plane.kubectl.define(gateway_api.definitions())
        for name in ("infra", NAMESPACE):
            plane.kubectl.run("create", "namespace", name)
        plane.kubectl.define(yaml.safe_dump(traefik.CLASS))
        plane.kubectl.define(EXAMPLE / "gateway.yaml")
        yield plane
    plane.purge()


@pytest.fixture(scope="module")
def port(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of the listener, on which traefik answers."""
    (listener,) = yaml.safe_load((EXAMPLE / "gateway.yaml").read_text())["spec"]["listeners"]
    port: int = listener["port"]
    with traefik.running(control_plane.client("traefik"), port, tmp_path_factory.mktemp("traefik")):
        yield port


class Scene:
    """The example's endpoint, with two Checkpoints, behind the gateway."""

    def __init__(self, api: Api, team: Team, kubelet: ServingKubelet, port: int) -> None:
        self.api = api
        self.team = team
        self.kubelet = kubelet
        example = yaml.safe_load((EXAMPLE / "inferencedeployment.yaml").read_text())
        self.hostname: str = example["spec"]["traffic"]["gateway"]["hostnames"][0]
        self.client = Client(port, self.hostname)
        self.port = port
        endpoint = manifests.inferencedeployment(NAMESPACE)
        served = endpoint["spec"] | {"models": [_pinned("first")], "strategy": strategy(10)}
        example["metadata"]["namespace"] = NAMESPACE
        example["spec"] |= served
        api.create(example)
        team.until_served(routing="first")
        self.old = team.endpoint()["status"]["revision"]
        eventually("the gateway routes", lambda: self.client.ask().revision == self.old, WAIT_SECONDS)

    def edit(self, **spec: Object | list[Object]) -> None:
        self.api.patch("InferenceDeployment", NAMESPACE, "support", {"spec": spec})

    def decide(self, revision: str, verdict: str, generation: int = 1) -> None:
        decision = {"revision": revision, "verdict": verdict, "generation": generation}
        self.edit(strategy={"decision": decision})

    def until_canary(self) -> str:
        """Wait until the gateway routes to a canary, and return its name."""
        self.team.until_reason("InferenceDeployment", "support", "Reconciling", "Canary")
        revisions = self.team.endpoint()["status"]["revisions"]
        (new,) = {each["name"] for each in revisions} - {self.old}
        header = {PINNED: new}
        eventually("the canary answers", lambda: self.client.ask(**header).revision == new, WAIT_SECONDS)
        return str(new)


def strategy(weight: int) -> Object:
    """A canary that waits for a decision at this weight."""
    return {"type": "Canary", "canary": {"steps": [{"setWeight": weight}, {"pause": {"seconds": 86400}}]}}


def _pinned(checkpoint: str) -> Object:
    return {"name": "routing", "pin": {"checkpoint": checkpoint}}


@pytest.fixture
def scene(control_plane: ControlPlane, port: int, tmp_path: Path) -> Iterator[Scene]:
    """The endpoint, which serves the first Checkpoint."""
    api = Api(control_plane.client("user"))
    manifests.prepare_namespace(api, NAMESPACE)
    kubelet = ServingKubelet(api, NAMESPACE)
    operators = Operators(control_plane, NAMESPACE, tmp_path)
    team = Team(api, NAMESPACE, operators.start().wait_active())
    for name in ("first", "second"):
        team.record(name)
    yield Scene(api, team, kubelet, port)
    operators.stop_all()
    kubelet.close()
    api.close()


def test_weights_are_exact_and_no_request_fails_when_a_canary_is_aborted_and_then_promoted(
    scene: Scene,
) -> None:
    scene.edit(models=[_pinned("second")])
    new = scene.until_canary()
    assert count(scene.client, 1000) == {scene.old: 900, new: 100}
    assert count(scene.client, 100, **{PINNED: new}) == {new: 100}
    assert scene.team.endpoint()["status"]["url"] == f"http://{scene.hostname}/v1"

    streams: list[tuple[int, int]] = []
    streamer = Client(scene.port, scene.hostname)
    thread = threading.Thread(target=lambda: streams.append(streamer.stream()))
    with Load(scene.port, scene.hostname) as load:
        thread.start()
        scene.decide(new, "Abort")
        scene.team.until_reason("InferenceDeployment", "support", "Stalled", "RolledBack")
        gone(scene.api, new)
        eventually("all requests return", lambda: load.latest == {scene.old}, WAIT_SECONDS)

        scene.decide(new, "Promote", 2)
        assert scene.until_canary() == new
        scene.decide(new, "Promote", 3)
        scene.team.until_served(routing="second")
        gone(scene.api, scene.old)
        eventually("all requests move", lambda: load.latest == {new}, WAIT_SECONDS)
        thread.join()
    assert load.failed == []
    assert len(load.answers) > 100
    assert streams == [(200, EVENTS)], "an open stream is not cut"
    assert scene.kubelet.late_seconds < DRAIN_SECONDS, "a pod drains for longer than the gateway needs"


def gone(api: Api, revision: str) -> None:
    """Wait until nothing of a revision is left."""
    for kind in ("Deployment", "Service"):
        absent = partial(is_absent, api, kind, revision)
        eventually(f"{kind} {revision} is deleted", absent, WAIT_SECONDS)


def is_absent(api: Api, kind: str, name: str) -> bool:
    return api.get(kind, NAMESPACE, name) is None
