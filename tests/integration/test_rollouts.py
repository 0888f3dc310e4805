# SPDX-License-Identifier: Apache-2.0
"""Rollouts of an endpoint on a real API server: capacity, and the strategies."""

import pytest

from finetune_operator.api.labels import REVISION
from tests.fakekubelet import FakeKubelet
from tests.integration.api import Api, Object
from tests.integration.operators import Operators
from tests.integration.team import Team
from tests.waiting import eventually


@pytest.fixture
def team(api: Api, namespace: str, operators: Operators, kubelet: FakeKubelet) -> Team:
    """A team with an endpoint that serves the first of two Checkpoints."""
    team = Team(api, namespace, operators.start().wait_active())
    for name in ("first", "second"):
        team.record(name)
    team.serve(pinned("first"))
    team.until_served(routing="first")
    return team


def pinned(checkpoint: str) -> Object:
    return {"name": "routing", "pin": {"checkpoint": checkpoint}}


def quota(namespace: str, pods: int) -> Object:
    metadata = {"name": "small", "namespace": namespace}
    return {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": metadata,
        "spec": {"hard": {"count/pods": str(pods)}},
    }


def test_a_rollout_that_a_quota_refuses_waits_and_ends_when_the_quota_is_raised(
    api: Api, namespace: str, team: Team
) -> None:
    api.create(quota(namespace, 1))
    team.serve(pinned("second"))
    message = team.until_reason("InferenceDeployment", "support", "Reconciling", "NoCapacityForSurge")
    assert "exceeded quota: small" in message
    assert team.served() == {"routing": "first"}
    api.patch("ResourceQuota", namespace, "small", {"spec": {"hard": {"count/pods": "9"}}})
    team.until_served(routing="second")


def test_a_fallback_recreates_after_the_deadline_without_capacity(
    api: Api, namespace: str, team: Team
) -> None:
    api.create(quota(namespace, 1))
    strategy = {"type": "RollingUpdate", "fallback": "Recreate", "progressDeadlineSeconds": 10}
    set_strategy(api, namespace, strategy)
    team.serve(pinned("second"))
    team.until_reason("InferenceDeployment", "support", "Reconciling", "NoCapacityForSurge")
    team.until_served(routing="second")


def set_strategy(api: Api, namespace: str, strategy: Object) -> None:
    api.patch("InferenceDeployment", namespace, "support", {"spec": {"strategy": strategy}})


def states(team: Team) -> dict[str, str]:
    return {each["name"]: each["state"] for each in team.endpoint()["status"]["revisions"]}


def test_a_canary_takes_its_steps_with_the_replicas_of_the_endpoint(
    api: Api, namespace: str, team: Team
) -> None:
    old = team.endpoint()["status"]["revision"]
    strategy = {"type": "Canary", "canary": {"steps": [{"setWeight": 50}, {"pause": {}}]}}
    api.patch("InferenceDeployment", namespace, "support", {"spec": {"replicas": 2, "strategy": strategy}})
    team.until_reason("InferenceDeployment", "support", "Ready", "Serving")
    team.serve(pinned("second"))
    message = team.until_reason("InferenceDeployment", "support", "Suspended", "AwaitingDecision")
    assert "keeps 50 % of the requests, because step 2 of 2 pauses until a decision" in message
    split = team.endpoint()["status"]["revisions"]
    assert {each["state"] for each in split} == {"Canary", "Live"}
    (budget,) = api.list("PodDisruptionBudget", namespace)
    assert (budget["spec"]["minAvailable"], "maxUnavailable" in budget["spec"]) == (1, False)
    (covered,) = budget["spec"]["selector"]["matchExpressions"]
    assert covered["values"] == sorted(each["name"] for each in split)
    decision = {"revision": split[0]["name"], "verdict": "Continue"}
    api.patch("InferenceDeployment", namespace, "support", {"spec": {"strategy": {"decision": decision}}})
    team.until_served(routing="second")
    (budget,) = api.list("PodDisruptionBudget", namespace)
    assert (budget["spec"]["maxUnavailable"], "minAvailable" in budget["spec"]) == (1, False)
    service = api.get("Service", namespace, "support")
    assert service is not None
    assert service["spec"]["selector"][REVISION] == team.endpoint()["status"]["revision"] != old


def test_replicas_are_replaced_one_by_one_within_the_limits(api: Api, namespace: str, team: Team) -> None:
    strategy = {"rollingUpdate": {"maxSurge": "50%"}}
    api.patch("InferenceDeployment", namespace, "support", {"spec": {"replicas": 2, "strategy": strategy}})
    team.until_reason("InferenceDeployment", "support", "Ready", "Serving")
    api.create(quota(namespace, 3))
    old = team.endpoint()["status"]["revision"]
    team.serve(pinned("second"))
    team.until_served(routing="second")
    assert sorted(states(team).values()) == ["Live", "Retired"]
    service = api.get("Service", namespace, "support")
    assert service is not None
    assert service["spec"]["selector"][REVISION] == team.endpoint()["status"]["revision"] != old


def test_a_canary_goes_on_when_the_job_of_its_analysis_has_passed(
    api: Api, namespace: str, team: Team
) -> None:
    """The fake kubelet lets each analysis pass."""
    strategy = {
        "type": "Canary",
        "canary": {"steps": [{"setWeight": 50}, {"analysis": {}}]},
        "analysis": {"gates": [{"metric": "error_rate", "max": 0.05}], "probe": {"requests": 10}},
    }
    api.patch("InferenceDeployment", namespace, "support", {"spec": {"replicas": 2, "strategy": strategy}})
    team.until_reason("InferenceDeployment", "support", "Ready", "Serving")
    team.serve(pinned("second"))
    team.until_served(routing="second")
    newest = team.endpoint()["status"]["revisions"][0]
    assert (newest["state"], newest["analysis"]["verdict"], newest["analysis"]["step"]) == ("Live", "Pass", 1)
    eventually("no Job is left", lambda: not api.list("Job", namespace))
