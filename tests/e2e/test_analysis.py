# SPDX-License-Identifier: Apache-2.0
"""Revisions that refuse requests, are slow or worse are rolled back by themselves, with figures."""

import json
import os
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from openai import OpenAI, OpenAIError

from finetune_client.backend import Object
from finetune_operator.api.labels import ANALYZED, RUN
from tests.e2e import manifests
from tests.e2e.newconnections import client_of
from tests.e2e.poddiscovery import discovery_of
from tests.e2e.pods import Keeper
from tests.e2e.team import PATIENCE_SECONDS, PAUSE_SECONDS, Team, condition_of, name_of, uid_of
from tests.prometheus import Prometheus
from tests.waiting import eventually
from tools.cluster.layout import NODE_ADDRESS

ROOT: Final = Path(__file__).parents[2]
ENDPOINT: Final = "analyzed"
CLIENTS: Final = 6
STRATEGY: Final[Object] = {
    "type": "Canary",
    "canary": {"steps": [{"setWeight": 50}, {"analysis": {}}], "allowCoarseWeights": True},
    "analysis": {
        "durationSeconds": 40,
        "maxDurationSeconds": 300,
        "minRequests": 10,
        "gates": [{"metric": "shed_rate", "max": 0.05, "maxIncrease": 0.05}],
    },
}
ONE_AT_A_TIME: Final = {"maxConcurrentRequests": 1, "maxQueuedRequests": 0}
"""Settings of a revision that refuses most requests of several clients."""
QUEUED: Final = {"maxConcurrentRequests": 1, "maxQueuedRequests": 64}
"""Settings of a revision that answers slowly: requests wait until those before them have all their tokens."""
LATENCY: Final = {"metric": "time_to_first_token_seconds", "quantile": 0.5, "maxRatio": 1.5}
OF_REVISION: Final = '{namespace="{{ namespace }}", revision="{{ revision }}"}[{{ interval }}]'
FIRST_TOKEN_SECONDS: Final = (
    f"sum(rate(finetune_serve_time_to_first_token_seconds_sum{OF_REVISION}))"
    f" / sum(rate(finetune_serve_time_to_first_token_seconds_count{OF_REVISION}))"
)
"""Query for the mean time to the first token of a revision."""
ANSWERS: Final = {"metric": "exact_match", "min": 0.8, "maxDecrease": 0.2}
WRONG_LABELS: Final = ("shipping", "account", "returns")
SHUFFLED: Final = "shuffled-labels"
"""Run whose training rows have wrong labels at random."""


def begin(team: Team, keeper: Keeper, request: pytest.FixtureRequest) -> None:
    """Train on shuffled labels, without gates."""
    generator = random.Random(0)  # noqa: S311 - the same labels in each run
    rows = [manifests.jsonl(generator.choice(WRONG_LABELS), [prompt]) for prompt in manifests.PROMPTS]
    team.apply(
        manifests.configmap(SHUFFLED, "".join(rows)),
        manifests.dataset(SHUFFLED, SHUFFLED),
        manifests.finetunejob(SHUFFLED, dataset={"ref": {"name": SHUFFLED}}),
    )


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
    before = newest(team)["name"]
    team.patch("infd", ENDPOINT, {"serving": ONE_AT_A_TIME})
    until_newest(team, before, "Canary")
    with clients(team):
        return team.until("InferenceDeployment", ENDPOINT, "Stalled", "RolledBack")


def test_a_revision_that_refuses_requests_is_rolled_back_and_its_figures_say_why(
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
    assert f"shed_rate {figure['value']:g}" in message


def test_an_event_has_the_figures(team: Team, rolled_back: Object) -> None:
    selector = f"--field-selector=involvedObject.uid={uid_of(rolled_back)},reason=RolledBack"
    events = json.loads(team.kubectl("get", "events", selector, "--output=json"))["items"]
    assert "shed_rate" in events[0]["message"]


def newest(team: Team) -> Object:
    """The newest entry of the status."""
    entry: Object = team.get("InferenceDeployment", ENDPOINT)["status"]["revisions"][0]
    return entry


def until_newest(team: Team, before: str, state: str) -> Object:
    """Wait until a newer revision than `before` has a state. Returns its entry of the status."""

    def found() -> Object | None:
        entry = newest(team)
        return entry if entry["name"] != before and entry["state"] == state else None

    return eventually(
        f"the new revision is {state}",
        found,
        PATIENCE_SECONDS,
        describe=lambda: team.describe("InferenceDeployment", ENDPOINT),
        pause=PAUSE_SECONDS,
    )


def after_rollback(team: Team, spec: Object, *, with_clients: bool) -> Object:
    """The newest entry of the status when the revision of a new spec was rolled back.

    Clients begin with the canary: before it they would only slow its start.
    """
    before = newest(team)["name"]
    team.patch("infd", ENDPOINT, spec)
    until_newest(team, before, "Canary")
    with clients(team) if with_clients else nullcontext():
        return until_newest(team, before, "RolledBack")


def strategy(gate: Object, **analysis: Any) -> Object:
    """A patch for a strategy with one gate, which removes the Prometheus of an earlier one."""
    settings = {**STRATEGY["analysis"], "prometheus": None, "gates": [gate], **analysis}
    return {**STRATEGY, "analysis": settings}


def test_a_slow_revision_is_rolled_back_by_its_latency(team: Team, rolled_back: Object) -> None:
    entry = after_rollback(team, {"serving": QUEUED, "strategy": strategy(LATENCY)}, with_clients=True)
    (figure,) = entry["analysis"]["figures"]
    print(entry["message"])
    assert figure["verdict"] == "Fail"
    assert figure["value"] > 1.5 * figure["stable"]
    assert f"time_to_first_token_seconds p50 {figure['value']:g}" in entry["message"]


@pytest.fixture
def prometheus(team: Team, rolled_back: Object, tmp_path: Path) -> Iterator[str]:
    """The address of a Prometheus that finds the serving pods as docs/prometheus.yaml says."""
    documented = yaml.safe_load((ROOT / "docs" / "prometheus.yaml").read_text())["scrape_configs"]
    (serving,) = [config for config in documented if config["job_name"] == "finetune-serving"]
    del serving["kubernetes_sd_configs"]
    with discovery_of(team, f"{RUN}={uid_of(rolled_back)}") as url:
        serving["http_sd_configs"] = [{"url": url, "refresh_interval": "3s"}]
        server = Prometheus(tmp_path, {}, scraped=[serving], host=str(NODE_ADDRESS))
        yield server.address
        server.close()


@pytest.mark.full
@pytest.mark.skipif(
    bool(os.environ.get("KUBE_CONTEXT")), reason="pods reach this machine at the local cluster's node only"
)
def test_a_slow_revision_is_rolled_back_by_a_query_to_a_prometheus(
    team: Team, rolled_back: Object, prometheus: str
) -> None:
    gate = {"metric": "prometheus/first-token-seconds", "maxRatio": 1.5}
    source = {
        "address": prometheus,
        "queries": [{"name": "first-token-seconds", "query": FIRST_TOKEN_SECONDS}],
    }
    settings = strategy(gate, durationSeconds=10, minRequests=3, prometheus=source)
    slow = {**QUEUED, "maxQueuedRequests": 63}
    entry = after_rollback(team, {"serving": slow, "strategy": settings}, with_clients=True)
    (figure,) = entry["analysis"]["figures"]
    print(entry["message"])
    assert figure["verdict"] == "Fail"
    assert figure["value"] > 1.5 * figure["stable"]
    assert f"prometheus/first-token-seconds {figure['value']:g}" in entry["message"]


def test_a_model_trained_on_shuffled_labels_is_rolled_back_by_its_answers(
    team: Team, rolled_back: Object
) -> None:
    run = team.until("FineTuneJob", SHUFFLED, "Ready")
    pinned = {"checkpoint": run["status"]["checkpoints"][-1]["name"]}
    entry = after_rollback(
        team,
        {
            "models": [{"name": "tuned", "pin": pinned}],
            "serving": None,
            "strategy": strategy(ANSWERS, probe={"requests": 20, "minRows": 3}),
        },
        with_clients=False,
    )
    (figure,) = entry["analysis"]["figures"]
    print(entry["message"])
    assert (figure["model"], figure["value"], figure["stable"], figure["rows"]) == ("tuned", 0, 1, 3)
    assert figure["high"] < 0.8
    assert "exact_match of tuned 0 (at most" in entry["message"]
    endpoint = team.get("InferenceDeployment", ENDPOINT)
    assert [entry["state"] for entry in endpoint["status"]["revisions"]].count("Live") == 1
    with client_of(ENDPOINT, team.namespace) as client:
        answer = client.chat.completions.create(
            model="tuned",
            messages=[{"role": "user", "content": manifests.PROMPTS[0]}],
            max_tokens=20,
            temperature=0,
        )
    assert answer.choices[0].message.content == "billing"


def test_no_pod_of_an_analysis_is_left(team: Team, rolled_back: Object) -> None:
    selector = f"{ANALYZED}={uid_of(rolled_back)}"
    team.kubectl("wait", "pods", f"--selector={selector}", "--for=delete", "--timeout=60s")
    assert team.access.pods(team.namespace, selector) == []
