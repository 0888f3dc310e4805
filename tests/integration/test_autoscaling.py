# SPDX-License-Identifier: Apache-2.0
"""Autoscalers of an endpoint: the documented objects, on a real API server with its controllers."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import yaml

from tests.fakekubelet import FakeKubelet
from tests.integration.api import Api, Object, path_of
from tests.integration.operators import Operators
from tests.integration.team import Team
from tests.waiting import eventually

PAGE: Final = Path(__file__).parents[2] / "docs" / "endpoints.md"
SCALED_SECONDS: Final = 90.0
"""Time for a HorizontalPodAutoscaler to act; its controller works every 15 s."""


@pytest.fixture
def team(api: Api, namespace: str, operators: Operators, kubelet: FakeKubelet) -> Team:
    """A team with an endpoint that serves the first of two Checkpoints."""
    team = Team(api, namespace, operators.start().wait_active())
    for name in ("first", "second"):
        team.record(name)
    team.serve({"name": "routing", "pin": {"checkpoint": "first"}})
    team.until_served(routing="first")
    return team


def documented() -> Iterator[Object]:
    """The objects in the page's blocks of YAML."""
    for block in re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL):
        yield from yaml.safe_load_all(block)


def documented_as(kind: str) -> Object:
    (found,) = (each for each in documented() if each.get("kind") == kind)
    return found


def test_the_documented_autoscaler_scales_an_endpoint(api: Api, namespace: str, team: Team) -> None:
    autoscaler = documented_as("HorizontalPodAutoscaler")
    path = f"/apis/autoscaling/v2/namespaces/{namespace}/horizontalpodautoscalers"
    api.request("POST", path, autoscaler).raise_for_status()
    least = autoscaler["spec"]["minReplicas"]
    eventually(
        "the endpoint has the min replicas of the autoscaler",
        lambda: team.endpoint()["spec"]["replicas"] == least,
        SCALED_SECONDS,
        lambda: api.request("GET", path).text,
    )
    eventually("they serve", lambda: team.endpoint()["status"]["readyReplicas"] == least)


def test_the_scale_of_an_endpoint_covers_both_revisions_of_a_canary(
    api: Api, namespace: str, team: Team
) -> None:
    canary = {"steps": [{"setWeight": 50}, {"pause": {"seconds": 3600}}]}
    spec = {"replicas": 2, "strategy": {"type": "Canary", "canary": canary}}
    api.patch("InferenceDeployment", namespace, "support", {"spec": spec})
    team.until_reason("InferenceDeployment", "support", "Ready", "Serving")
    team.serve({"name": "routing", "pin": {"checkpoint": "second"}})
    path = f"{path_of('InferenceDeployment', namespace, 'support')}/scale"

    def selected() -> list[Object]:
        scale = api.request("GET", path).raise_for_status().json()
        status = scale["status"]
        pods = f"/api/v1/namespaces/{namespace}/pods?labelSelector={status['selector']}"
        found: list[Object] = api.request("GET", pods).raise_for_status().json()["items"]
        return found if (scale["spec"]["replicas"], status["replicas"]) == (2, 2) else []

    def revisions() -> set[str]:
        return {each["metadata"]["labels"]["finetune.dev/revision"] for each in selected()}

    eventually("the selector covers the pods of both revisions", lambda: len(revisions()) == 2)


def test_both_autoscalers_name_an_endpoint_and_a_series_that_exists() -> None:
    rules = (PAGE.parents[1] / "charts" / "finetune-operator" / "alerts").glob("*.rules.yaml")
    series = {
        rule["record"]
        for file in rules
        for group in yaml.safe_load(file.read_text())["groups"]
        for rule in group["rules"]
        if "record" in rule
    }
    scaled, autoscaler = documented_as("ScaledObject"), documented_as("HorizontalPodAutoscaler")
    (query,) = (each["metadata"]["query"] for each in scaled["spec"]["triggers"])
    assert set(re.findall(r"[a-z_]+:[a-z_]+:[a-z_0-9]+", query)) & series
    for each in (scaled, autoscaler):
        target = each["spec"]["scaleTargetRef"]
        assert (target["apiVersion"], target["kind"]) == ("finetune.dev/v1alpha1", "InferenceDeployment")
