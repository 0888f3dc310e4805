# SPDX-License-Identifier: Apache-2.0
"""Rollouts of the endpoints on a profile after its edit, on a real API server."""

from tests.fakekubelet import FakeKubelet
from tests.integration.api import Api
from tests.integration.manifests import profile_name
from tests.integration.operators import Operators
from tests.integration.team import Team
from tests.waiting import eventually
from tools.cluster.audit import AuditLog

ENDPOINTS = ("chat", "desk", "mail", "search")


def test_an_edit_of_a_profile_rolls_as_many_endpoints_at_a_time_as_it_allows(
    api: Api, namespace: str, operators: Operators, kubelet: FakeKubelet, audit: AuditLog
) -> None:
    team = Team(api, namespace, operators.start().wait_active())
    team.record("first")
    for name in ENDPOINTS:
        team.serve({"name": "routing", "pin": {"checkpoint": "first"}}, name=name)
    for name in ENDPOINTS:
        team.until_served(name, routing="first")
    before = {name: team.endpoint(name)["status"]["revision"] for name in ENDPOINTS}
    mark = audit.mark()
    edit = {
        "limits": {"concurrentRollouts": 1},
        "pods": [{"stages": ["serve"], "resources": {"cpu": "1", "memory": "4Gi"}}],
    }
    api.patch("ComputeProfile", "", profile_name(namespace), {"spec": edit})
    for name in ENDPOINTS:
        eventually(
            f"{name} has a new revision",
            lambda name=name: team.endpoint(name)["status"]["revision"] != before[name],  # type: ignore[misc]
            60,
            lambda name=name: team.endpoint(name),  # type: ignore[misc]
        )
    # Each endpoint starts new pods only after the Service of the previous endpoint has switched.
    wanted = {("create", "deployments"), ("patch", "services")}
    asked = audit.writes(mark, operators.user)
    steps = [each.verb for each in asked if (each.verb, each.resource) in wanted]
    assert steps == ["create", "patch"] * len(ENDPOINTS)
