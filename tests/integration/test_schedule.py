# SPDX-License-Identifier: Apache-2.0
"""Schedules on a real API server: one run per request, also across a crash of the operator."""

import pytest

from finetune_operator.manifests.labels import KEY, RUN_REQUESTED
from tests.fakekubelet import FakeKubelet
from tests.integration import manifests
from tests.integration.api import Api, Object
from tests.integration.chain import until_condition
from tests.integration.manifests import is_true
from tests.integration.operators import Operator, Operators
from tests.waiting import eventually

SCHEDULE = "nightly"


@pytest.fixture
def operator(operators: Operators) -> Operator:
    return operators.start().wait_active()


def status(api: Api, namespace: str) -> Object:
    found: Object = (api.get("FineTuneSchedule", namespace, SCHEDULE) or {}).get("status", {})
    return found


def request(api: Api, namespace: str, text: str) -> None:
    api.patch("FineTuneSchedule", namespace, SCHEDULE, {"metadata": {"annotations": {RUN_REQUESTED: text}}})


def until_runs(api: Api, namespace: str, number: int) -> list[Object]:
    def found() -> list[Object] | None:
        runs = api.list("FineTuneJob", namespace)
        return runs if len(runs) == number else None

    return eventually(f"{number} runs exist", found, 60, lambda: str(status(api, namespace)))


def test_each_request_starts_one_run_also_if_the_operator_is_killed(
    api: Api, namespace: str, operator: Operator, operators: Operators, kubelet: FakeKubelet
) -> None:
    kubelet.held = {"train"}
    api.create(manifests.dataset(namespace))
    template = manifests.finetunejob(namespace)["spec"]
    api.create(manifests.finetuneschedule(namespace, template))
    until_condition(api, (namespace, "FineTuneSchedule", SCHEDULE), "Ready", operator)
    assert status(api, namespace)["display"]["triggers"] == "0 3 * * * (Europe/Berlin)"

    request(api, namespace, "new names")
    (run,) = until_runs(api, namespace, 1)
    operator.kill()
    assert run["metadata"]["annotations"][KEY] == "request/new names"
    assert "ownerReferences" not in run["metadata"]
    request(api, namespace, "newer names")

    second = operators.start().wait_active()
    name = run["metadata"]["name"]
    eventually(
        "the request waits for the run",
        lambda: f"request: newer names: waits for the end of {name}" in str(status(api, namespace)),
        60,
        lambda: second.log[-4000:],
    )
    assert [each["name"] for each in status(api, namespace)["active"]] == [name]
    kubelet.held.clear()
    until_runs(api, namespace, 2)
    ended = until_condition(api, (namespace, "FineTuneJob", name), "Ready", second)
    assert is_true(ended, "Evaluated")

    api.delete("FineTuneSchedule", namespace, SCHEDULE)
    eventually("the schedule is gone", lambda: api.get("FineTuneSchedule", namespace, SCHEDULE) is None)
    assert len(api.list("FineTuneJob", namespace)) == 2
