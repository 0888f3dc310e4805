"""A revision that answers with errors under load is rolled back by itself, with the figures that decided."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final

import pytest
from openai import OpenAI, OpenAIError

from finetune_operator.manifests.labels import ANALYZED
from tests.e2e import manifests
from tests.e2e.newconnections import client_of
from tests.e2e.team import Team, condition_of, name_of, uid_of
from tools.demo.access import Object

ENDPOINT: Final = "analyzed"
CLIENTS: Final = 6
STRATEGY: Final[Object] = {
    "type": "Canary",
    "canary": {"steps": [{"setWeight": 50}, {"analysis": {}}], "allowCoarseWeights": True},
    "analysis": {
        "durationSeconds": 40,
        "maxDurationSeconds": 300,
        "minRequests": 10,
        "gates": [{"metric": "error_rate", "max": 0.05, "maxIncrease": 0.05}],
    },
}
ONE_AT_A_TIME: Final = {"maxConcurrentRequests": 1, "maxQueuedRequests": 0}
"""Settings of a revision that refuses most requests of several clients."""


@pytest.fixture(scope="module")
def analyzed(team: Team, routing: Object) -> Iterator[Object]:
    """An endpoint that serves, with an analysis in its canary. It is deleted at the end of the module."""
    spec = {
        **manifests.endpoint(ENDPOINT, "routing")["spec"],
        "models": [{"name": "tuned", "pin": {"checkpoint": name_of(team.checkpoint_of(routing))}}],
        "strategy": STRATEGY,
        "networkPolicy": {"allowFrom": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]},
    }
    team.apply(manifests.of("InferenceDeployment", ENDPOINT, spec))
    yield team.until("InferenceDeployment", ENDPOINT, "Ready", "Serving")
    team.kubectl("delete", "infd", ENDPOINT)


@contextmanager
def clients(team: Team) -> Iterator[None]:
    """Clients that each send one long request after the other, each with a new connection."""
    stop = threading.Event()

    def send(client: OpenAI) -> None:
        while not stop.is_set():
            try:
                client.completions.create(model="base", prompt="order late?", max_tokens=200)
            except OpenAIError:
                stop.wait(0.1)

    with client_of(ENDPOINT, team.namespace) as client, ThreadPoolExecutor(CLIENTS) as pool:
        for _ in range(CLIENTS):
            pool.submit(send, client)
        try:
            yield
        finally:
            stop.set()


@pytest.fixture(scope="module")
def rolled_back(team: Team, analyzed: Object) -> Object:
    """The endpoint after the rollout of a revision that refuses requests."""
    with clients(team):
        team.patch("infd", ENDPOINT, {"serving": ONE_AT_A_TIME})
        return team.until("InferenceDeployment", ENDPOINT, "Stalled", "RolledBack")


def test_a_revision_with_errors_is_rolled_back_and_its_figures_say_why(
    analyzed: Object, rolled_back: Object
) -> None:
    newest, old = rolled_back["status"]["revisions"]
    assert (newest["state"], newest["verdict"]["result"], newest["weight"]) == ("RolledBack", "Failed", 0)
    assert (old["name"], old["state"], old["weight"]) == (analyzed["status"]["revision"], "Live", 100)
    found = newest["analysis"]
    assert (found["verdict"], found["step"]) == ("Fail", 1)
    (figure,) = found["figures"]
    assert figure["verdict"] == "Fail"
    assert figure["value"] > figure["low"] > 0.05
    assert figure["stable"] < 0.05
    assert min(found["requests"], found["stableRequests"]) > 0
    message = condition_of(rolled_back, "Stalled")["message"]
    assert f"its analysis failed after {found['requests']} requests" in message
    assert f"error_rate {figure['value']:g}" in message


def test_an_event_has_the_figures(team: Team, rolled_back: Object) -> None:
    selector = f"--field-selector=involvedObject.uid={uid_of(rolled_back)},reason=RolledBack"
    events = json.loads(team.kubectl("get", "events", selector, "--output=json"))["items"]
    assert "error_rate" in events[0]["message"]


def test_no_pod_of_an_analysis_is_left(team: Team, rolled_back: Object) -> None:
    selector = f"{ANALYZED}={uid_of(rolled_back)}"
    team.kubectl("wait", "pods", f"--selector={selector}", "--for=delete", "--timeout=60s")
    assert team.access.pods(team.namespace, selector) == []
