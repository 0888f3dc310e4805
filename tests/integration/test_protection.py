# SPDX-License-Identifier: Apache-2.0
"""An endpoint's Service, NetworkPolicy and PodDisruptionBudget on a real API server."""

import time

import pytest

from tests.fakekubelet import FakeKubelet
from tests.integration.api import Api, Object
from tests.integration.chain import until_settled
from tests.integration.operators import Operators
from tests.integration.team import Team
from tests.waiting import eventually
from tools.cluster.audit import AuditLog

REVISION = "finetune.dev/revision"
WITHIN_SECONDS = 5.0
"""Time for which requests to an endpoint may fail after a user deleted its Service."""
FIRST, SECOND = ({"name": "routing", "pin": {"checkpoint": name}} for name in ("first", "second"))


@pytest.fixture
def team(api: Api, namespace: str, operators: Operators, kubelet: FakeKubelet) -> Team:
    """An endpoint that serves the first of two Checkpoints."""
    team = Team(api, namespace, operators.start().wait_active())
    team.record("first")
    team.record("second")
    team.serve(FIRST)
    team.until_served("support", routing="first")
    return team


def only(api: Api, kind: str, namespace: str) -> Object:
    (found,) = api.list(kind, namespace)
    return found


def behind(api: Api, kind: str, namespace: str) -> str:
    """The revision that the Service, or the budget, selects."""
    selector = only(api, kind, namespace)["spec"]["selector"]
    revision: str = selector.get("matchLabels", selector)[REVISION]
    return revision


def test_a_service_deleted_by_hand_is_back_within_seconds_and_no_pod_is_restarted(
    api: Api, namespace: str, team: Team, operators: Operators, audit: AuditLog
) -> None:
    until_settled(audit, operators.user)
    service = only(api, "Service", namespace)
    deployment, pods = only(api, "Deployment", namespace), api.list("Pod", namespace)
    mark = audit.mark()
    api.delete("Service", namespace, "support")
    deleted = time.monotonic()

    def back() -> bool:
        found = api.get("Service", namespace, "support")
        return found is not None and found["metadata"]["uid"] != service["metadata"]["uid"]

    eventually("the Service is back", back, WITHIN_SECONDS)
    assert time.monotonic() - deleted < WITHIN_SECONDS + 1
    assert behind(api, "Service", namespace) == deployment["metadata"]["name"]
    until_settled(audit, operators.user)
    writes = [(each.verb, each.resource) for each in audit.writes(mark, operators.user)]
    assert [write for write in writes if write[1] != "inferencedeployments"] == [("create", "services")]
    assert only(api, "Deployment", namespace)["metadata"]["uid"] == deployment["metadata"]["uid"]
    uids = {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in pods}
    assert {p["metadata"]["name"]: p["metadata"]["uid"] for p in api.list("Pod", namespace)} == uids


def test_policy_and_budget_come_change_move_and_ask_nothing_while_nothing_changes(
    api: Api, namespace: str, team: Team, operators: Operators, audit: AuditLog
) -> None:
    old = behind(api, "Service", namespace)
    assert not api.list("NetworkPolicy", namespace)
    assert not api.list("PodDisruptionBudget", namespace)
    peers = [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "shop"}}}, {"podSelector": {}}]
    spec: Object = {"replicas": 2, "networkPolicy": {"allowFrom": peers}}
    api.patch("InferenceDeployment", namespace, "support", {"spec": spec})
    eventually("there is a policy", lambda: api.list("NetworkPolicy", namespace))
    eventually("there is a budget", lambda: api.list("PodDisruptionBudget", namespace))
    rule, _ = only(api, "NetworkPolicy", namespace)["spec"]["ingress"]
    monitoring = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    assert rule["from"] == [*peers, monitoring]
    assert behind(api, "PodDisruptionBudget", namespace) == old
    assert only(api, "Deployment", namespace)["metadata"]["name"] == old

    until_settled(audit, operators.user)
    mark = audit.mark()
    note = {"metadata": {"annotations": {"note": "seen"}}}
    api.patch("InferenceDeployment", namespace, "support", note)
    until_settled(audit, operators.user)
    assert audit.writes(mark, operators.user) == []

    api.patch("InferenceDeployment", namespace, "support", {"spec": {"models": [SECOND]}})
    team.until_served("support", routing="second")
    new = behind(api, "Service", namespace)
    assert new != old
    eventually("the budget moves", lambda: behind(api, "PodDisruptionBudget", namespace) == new)

    own = {"networkPolicy": None, "availability": {"disruptionBudget": "None"}}
    api.patch("InferenceDeployment", namespace, "support", {"spec": own})
    for kind in ("NetworkPolicy", "PodDisruptionBudget"):
        eventually(f"the {kind} is gone", lambda kind=kind: not api.list(kind, namespace))  # type: ignore[misc]


def test_a_policy_of_that_name_that_is_somebody_elses_is_left_alone_and_named(
    api: Api, namespace: str, team: Team
) -> None:
    api.patch("InferenceDeployment", namespace, "support", {"spec": {"networkPolicy": {}}})
    policy = eventually("there is a policy", lambda: api.list("NetworkPolicy", namespace))[0]
    name = policy["metadata"]["name"]
    api.patch("InferenceDeployment", namespace, "support", {"spec": {"networkPolicy": None}})
    eventually("the policy is gone", lambda: not api.list("NetworkPolicy", namespace))
    theirs = {"podSelector": {"matchLabels": {"app": "theirs"}}, "policyTypes": ["Ingress"]}
    api.create(
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": name, "namespace": namespace},
            "spec": theirs,
        }
    )
    api.patch("InferenceDeployment", namespace, "support", {"spec": {"networkPolicy": {}}})

    def named() -> bool:
        conditions = team.endpoint("support")["status"]["conditions"]
        return any(each["reason"] == "NameConflict" and name in each["message"] for each in conditions)

    eventually("the conflict is named", named, describe=lambda: team.endpoint("support"))
    assert only(api, "NetworkPolicy", namespace)["spec"] == theirs
