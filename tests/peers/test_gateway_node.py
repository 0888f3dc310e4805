# SPDX-License-Identifier: Apache-2.0
"""An endpoint of a real node behind traefik: no request fails while its pods are replaced."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import yaml
from openai import DefaultHttpxClient, OpenAI

from finetune_client.endpoint import REQUEST_SECONDS, ask, ask_streamed
from finetune_trainer.contract.environment import SERVE_PORT
from tests.e2e import manifests, pods
from tests.e2e.endpointunderload import EndpointUnderLoad
from tests.e2e.team import Team, new_namespace, uid_of
from tools.cluster import TestCluster, gateway_api
from tools.cluster.layout import ISOLATED
from tools.demo.admin_access import AdminAccess
from tools.demo.install import images, install
from tools.demo.questions import SteadyLoad
from tools.peers import traefik

GATEWAY: Final = Path(__file__).parents[2] / "examples" / "gateway" / "gateway.yaml"
HOSTNAME: Final = "desk.example.com"
NAME: Final = "desk"
CANARY: Final = {"type": "Canary", "canary": {"steps": [{"setWeight": 50}, {"pause": {"seconds": 86400}}]}}

pytestmark = pytest.mark.skipif(
    ISOLATED not in os.environ, reason="needs namespaces of its own: run `python -m tools.peers test`"
)


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of traefik, on a cluster with a node, the Gateway API and the operator."""
    with TestCluster() as cluster:
        access = AdminAccess.from_environment()
        access.kubectl("create", "namespace", "infra")
        cluster.kubectl.define(gateway_api.definitions())
        cluster.kubectl.define(yaml.safe_dump(traefik.CLASS))
        cluster.kubectl.define(GATEWAY)
        install(access, images(), gatewayAPI={"enabled": True})
        (listener,) = yaml.safe_load(GATEWAY.read_text())["spec"]["listeners"]
        with traefik.running(cluster.client("traefik"), listener["port"], tmp_path_factory.mktemp("traefik")):
            yield listener["port"]


@pytest.fixture(scope="module")
def team(port: int) -> Iterator[Team]:
    access = AdminAccess.from_environment()
    profile = json.dumps(manifests.profile(manifests.CPU))
    access.kubectl("apply", "--server-side", "--filename=-", text=profile)
    with new_namespace(access, "gateway", "restricted") as team:
        team.apply(manifests.claim("artifacts"), manifests.claim("models"))
        pods.keep_model(team, images().operator)
        yield team


@pytest.fixture(scope="module")
def endpoint(team: Team, port: int) -> Iterator[EndpointUnderLoad]:
    """An endpoint that answers behind the gateway, and gets requests from then on."""
    desk = manifests.endpoint(NAME, "routing")
    parent = {"name": "public", "namespace": "infra"}
    desk["spec"] |= {
        "traffic": {"gateway": {"parentRefs": [parent], "hostnames": [HOSTNAME]}},
        "strategy": CANARY,
    }
    team.apply(
        manifests.configmap("tickets", manifests.jsonl("billing")),
        manifests.dataset("tickets", "tickets"),
        manifests.finetunejob("routing"),
        desk,
    )
    uid = uid_of(team.until("InferenceDeployment", NAME, "Ready"))
    settings: dict[str, Any] = {"trust_env": False, "timeout": REQUEST_SECONDS, "headers": {"Host": HOSTNAME}}
    client = OpenAI(
        base_url=f"http://127.0.0.1:{port}/v1",
        api_key="none",
        max_retries=0,
        timeout=REQUEST_SECONDS,
        http_client=DefaultHttpxClient(**settings),
    )
    assert ask(client, "tuned", manifests.PROMPTS[0]) == "billing", "the route was accepted"
    with SteadyLoad(client, "tuned", manifests.PROMPTS, 1, asks=(ask, ask_streamed)) as load:
        yield EndpointUnderLoad(team, NAME, uid, client, load)


def num_answered(endpoint: EndpointUnderLoad, revision: str) -> float:
    """Requests that the pod of a revision has answered, by its own metrics."""
    (pod,) = endpoint.pods(revision)
    scraped = httpx.get(f"http://{pod['status']['podIP']}:{SERVE_PORT}/metrics", trust_env=False).text
    counted = (line for line in scraped.splitlines() if line.startswith("finetune_serve_requests_total{"))
    return sum(float(line.rpartition(" ")[2]) for line in counted if 'code="200"' in line)


def until_one_deployment(endpoint: EndpointUnderLoad, revision: str) -> None:
    endpoint.eventually(
        f"only {revision} and its pods are left",
        lambda: set(endpoint.deployments()) == endpoint.revisions_with_pods() == {revision},
    )


def test_no_request_fails_while_a_canary_is_aborted_and_then_promoted(endpoint: EndpointUnderLoad) -> None:
    old = endpoint.serving()
    with endpoint.step("canary behind a gateway, aborted"):
        endpoint.patch(restartedAt="2026-01-01T00:00:00Z")
        endpoint.until("Reconciling", "Canary")
        new = endpoint.revisions()[0]["name"]
        endpoint.eventually("the canary answers", lambda: num_answered(endpoint, new) >= 3)
        endpoint.decide("Abort")
        endpoint.until("Stalled", "RolledBack")
        until_one_deployment(endpoint, old)
    with endpoint.step("canary behind a gateway, promoted"):
        endpoint.decide("Promote", generation=2)
        endpoint.until("Reconciling", "Canary")
        endpoint.decide("Promote", generation=3)
        endpoint.until("Ready", "Serving")
        until_one_deployment(endpoint, new)
        endpoint.eventually("the new revision answers", lambda: num_answered(endpoint, new) >= 3)
    assert endpoint.load.failed == 0, endpoint.load.failures
