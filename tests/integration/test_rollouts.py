"""Rollouts of an endpoint on a real API server: capacity, and the strategies."""

import pytest

from tests.fakekubelet import FakeKubelet
from tests.integration.api import Api, Object
from tests.integration.operators import Operators
from tests.integration.team import Team


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
