# SPDX-License-Identifier: Apache-2.0
"""An operator with older definitions reports them, waits, and continues after they are applied."""

from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from finetune_operator.engine.client import make_error
from finetune_operator.engine.errors import Undeclared
from tests.integration.api import Api
from tests.integration.operators import Operators
from tests.waiting import eventually

ROOT = Path(__file__).parents[2]
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
NAME = "finetunejobs.finetune.dev"
NEWEST = "evaluations.finetune.dev"


@pytest.fixture
def older(api: Api) -> Any:
    """Install a definition of FineTuneJobs without a field that this release writes, during the test."""
    before = api.request("GET", f"{DEFINITIONS}/{NAME}").json()
    crd = yaml.safe_load((ROOT / "crds" / "finetunejobs.yaml").read_text())
    status = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]
    del status["properties"]["resolved"]["properties"]["trainerContract"]
    put(api, {**before, "spec": crd["spec"]})
    yield
    put(api, {**before, "metadata": {"name": NAME}})


def put(api: Api, definition: dict[str, Any]) -> None:
    live = api.request("GET", f"{DEFINITIONS}/{NAME}").json()
    definition["metadata"] = live["metadata"]
    api.request("PUT", f"{DEFINITIONS}/{NAME}", definition).raise_for_status()


@pytest.mark.usefixtures("older")
def test_an_operator_with_older_definitions_names_them_and_waits(api: Api, operators: Operators) -> None:
    operator = operators.start("new")
    said = f"{NAME} is outdated: it lacks status.resolved.trainerContract"
    eventually("the definition is named", lambda: said in operator.log, describe=lambda: operator.log)
    eventually("the metric says so", lambda: operator.metric("finetune_outdated_definitions") == 1)
    assert operator.status_of("readyz") == 503
    answer = httpx.get(f"http://127.0.0.1:{operator.http_port}/readyz", trust_env=False)
    assert answer.json()["outdatedDefinitions"] == [said]
    assert operator.metric("finetune_active") == 0

    put(api, yaml.safe_load((ROOT / "crds" / "finetunejobs.yaml").read_text()))

    operator.wait_active()
    assert operator.metric("finetune_outdated_definitions") == 0


@pytest.mark.usefixtures("older")
def test_a_status_with_a_field_of_this_release_is_not_mistaken_for_passing_trouble(
    api: Api, namespace: str
) -> None:
    spec = {"modelLine": "m", "baseModel": {"uri": "pvc://m"}, "dataset": {"ref": {"name": "d"}}}
    head = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "a"}}
    path = f"/apis/finetune.dev/v1alpha1/namespaces/{namespace}/finetunejobs"
    api.request("POST", path, {**head, "spec": spec}).raise_for_status()
    status = {"resolved": {"trainerContract": 2}}

    answer = api.request(
        "PATCH",
        f"{path}/a/status?fieldManager=test&force=true",
        {**head, "status": status},
        Content_Type="application/apply-patch+yaml",
    )

    assert isinstance(make_error(answer.status_code, None, answer.content), Undeclared), answer.text


@pytest.fixture
def without_a_kind(api: Api) -> Any:
    """Remove the definition of a kind that older definitions do not have, during the test."""
    path = f"{DEFINITIONS}/{NEWEST}"
    api.request("DELETE", path).raise_for_status()
    eventually("the definition is gone", lambda: api.request("GET", path).status_code == 404)
    yield
    if api.request("GET", path).status_code == 404:
        define(api)


def define(api: Api) -> None:
    crd = yaml.safe_load((ROOT / "crds" / "evaluations.yaml").read_text())
    api.request("POST", DEFINITIONS, crd).raise_for_status()


@pytest.mark.usefixtures("without_a_kind")
def test_an_operator_waits_for_the_definition_of_a_new_kind(api: Api, operators: Operators) -> None:
    operator = operators.start("new")
    said = f"{NEWEST} is not installed"
    eventually("the definition is named", lambda: said in operator.log, describe=lambda: operator.log)
    assert operator.status_of("readyz") == 503

    define(api)

    operator.wait_active()
    assert operator.metric("finetune_outdated_definitions") == 0
