# SPDX-License-Identifier: Apache-2.0
"""Budgets of a ComputeProfile on a real API server: what is counted, who waits, and until when."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import NamedTuple

import pytest

from tests.fakekubelet import FakeKubelet
from tests.integration import manifests
from tests.integration.api import Api, Object
from tests.integration.manifests import condition, profile_name
from tests.integration.operators import Operator, Operators
from tests.integration.team import Team
from tests.waiting import eventually
from tools.cluster import ControlPlane

HOURS = 1.5
"""The budget of the tests: more than the hour that is reserved for a device of another Job."""
ALMOST = int(HOURS * 3600) - 5
"""Device seconds after which few are left."""


def _text(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


class Neighbour(NamedTuple):
    """Another namespace with an operator of its own."""

    namespace: str
    kubelet: FakeKubelet
    operators: Operators


@pytest.fixture
def neighbour(
    api: Api, namespace: str, control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Neighbour]:
    name = f"{namespace}-neighbour"
    api.request("POST", "/api/v1/namespaces", {"metadata": {"name": name}}).raise_for_status()
    manifests.prepare_namespace(api, name)
    operators = Operators(control_plane, name, tmp_path_factory.mktemp("neighbour"))
    kubelet = FakeKubelet(api, name)
    yield Neighbour(name, kubelet, operators)
    kubelet.close()
    operators.stop_all()


class BudgetScene:
    """A profile with a budget, of which one namespace has used almost all."""

    def __init__(self, api: Api, profile: str, namespace: str, operator: Operator) -> None:
        self.api = api
        self.profile = profile
        self._operator = operator
        self.set_budget(HOURS)
        eventually("the count begins", lambda: self.status.get("budget"), describe=self._describe)
        now = _text(datetime.now(UTC))
        self.write(usage=[{"namespace": namespace, "deviceSeconds": ALMOST, "countedUntil": now}])

    @property
    def status(self) -> Object:
        status: Object = (self.api.get("ComputeProfile", "", self.profile) or {}).get("status", {})
        return status

    def set_budget(self, hours: float) -> None:
        budget = {"period": "Month", "deviceHoursPerNamespace": hours}
        self.api.patch("ComputeProfile", "", self.profile, {"spec": {"cost": {"budget": budget}}})

    def write(self, **fields: object) -> None:
        """Overwrite fields of status.budget."""
        self.api.patch("ComputeProfile", "", self.profile, {"status": {"budget": fields}}, "status")

    def usage(self, namespace: str) -> Object | None:
        entries = self.status.get("budget", {}).get("usage", [])
        return next((each for each in entries if each["namespace"] == namespace), None)

    def until_counted(self, namespace: str, seconds: float) -> Object:
        """Wait until the namespace has used this much; its usage."""
        return eventually(
            f"{namespace} has used {seconds} device seconds",
            lambda: usage if (usage := self.usage(namespace)) and usage["deviceSeconds"] >= seconds else None,
            60,
            self._describe,
        )

    def _describe(self) -> str:
        return f"{self.status}\n{self._operator.log[-4000:]}"


def started_at(api: Api, namespace: str, run: str) -> datetime:
    (pod,) = [
        pod
        for pod in api.list("Pod", namespace)
        if pod["metadata"]["labels"]["finetune.dev/owner-name"] == run
        and pod["metadata"]["labels"]["finetune.dev/stage"] == "train"
    ]
    return datetime.fromisoformat(pod["status"]["containerStatuses"][0]["state"]["running"]["startedAt"])


def test_a_run_waits_for_the_budget_of_its_namespace_and_starts_when_it_is_raised_or_reset(
    api: Api, namespace: str, operators: Operators, kubelet: FakeKubelet
) -> None:
    operator = operators.start().wait_active()
    team, scene = (
        Team(api, namespace, operator),
        BudgetScene(api, profile_name(namespace), namespace, operator),
    )
    kubelet.held.add("train")
    api.create(manifests.dataset(namespace))
    api.create(manifests.finetunejob(namespace, "first", evaluation=None))
    eventually("the first run trains", lambda: "train" in kubelet.started, 60, lambda: operator.log[-4000:])
    usage = scene.until_counted(namespace, HOURS * 3600)
    start = started_at(api, namespace, "first")

    def expected(entry: Object) -> float:
        return ALMOST + (datetime.fromisoformat(entry["countedUntil"]) - start).total_seconds()

    assert usage["deviceSeconds"] == expected(usage)
    api.create(manifests.finetunejob(namespace, "second", evaluation=None))
    message = team.until_reason("FineTuneJob", "second", "Reconciling", "BudgetExhausted")
    assert ": 1.5 device hours this month. The train stage starts after the reset at" in message
    assert condition(api.get("FineTuneJob", namespace, "first"), "Reconciling")["reason"] == "Training"

    # A restarted operator counts what it did not see, and nothing twice.
    assert operator.terminate() == 0
    operators.start("operator-1").wait_active()
    kubelet.held.clear()
    team.until_reason("FineTuneJob", "first", "Ready", "NotPromoted")
    (pod,) = [
        pod
        for pod in api.list("Pod", namespace)
        if pod["metadata"]["labels"]["finetune.dev/stage"] == "train"
    ]
    ended = pod["status"]["containerStatuses"][0]["state"]["terminated"]
    took = datetime.fromisoformat(ended["finishedAt"]) - datetime.fromisoformat(ended["startedAt"])
    final = scene.until_counted(namespace, ALMOST + took.total_seconds())
    assert final["deviceSeconds"] == ALMOST + took.total_seconds()
    team.until_reason("FineTuneJob", "second", "Reconciling", "BudgetExhausted")

    scene.set_budget(100)
    team.until_reason("FineTuneJob", "second", "Ready", "NotPromoted")
    scene.write(usage=[{**final, "deviceSeconds": 100 * 3600}])
    api.create(manifests.finetunejob(namespace, "third", evaluation=None))
    team.until_reason("FineTuneJob", "third", "Reconciling", "BudgetExhausted")
    scene.write(resetsAt=_text(datetime.now(UTC)))
    team.until_reason("FineTuneJob", "third", "Ready", "NotPromoted")


def test_two_installations_count_their_own_namespaces_and_only_the_one_that_used_its_budget_waits(
    api: Api, namespace: str, operators: Operators, kubelet: FakeKubelet, neighbour: Neighbour
) -> None:
    operator, another = operators.start().wait_active(), neighbour.operators.start().wait_active()
    profile, namespaces = profile_name(namespace), (namespace, neighbour.namespace)
    scene = BudgetScene(api, profile, namespace, operator)
    compute = {"profile": profile}
    for each, pods in zip(namespaces, (kubelet, neighbour.kubelet), strict=True):
        pods.held.add("train")
        api.create(manifests.dataset(each))
        api.create(manifests.finetunejob(each, "first", compute=compute, evaluation=None))
    for each, before in zip(namespaces, (ALMOST, 0), strict=True):
        usage = scene.until_counted(each, before + 5)
        passed = datetime.fromisoformat(usage["countedUntil"]) - started_at(api, each, "first")
        assert usage["deviceSeconds"] == before + passed.total_seconds()
    for each in namespaces:
        api.create(manifests.finetunejob(each, "second", compute=compute, evaluation=None))
    Team(api, namespace, operator).until_reason("FineTuneJob", "second", "Reconciling", "BudgetExhausted")
    Team(api, neighbour.namespace, another).until_reason("FineTuneJob", "second", "Reconciling", "Training")
