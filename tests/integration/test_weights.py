# SPDX-License-Identifier: Apache-2.0
"""The share of requests in an endpoint's status, across an upgrade on a real API server."""

from tests.fakekubelet import FakeKubelet
from tests.integration.api import Api
from tests.integration.chain import until_all_reconciled
from tests.integration.operators import Operators
from tests.integration.team import Team
from tools.cluster.audit import AuditLog


def test_an_endpoint_of_an_earlier_release_gets_its_weights_with_one_write(
    api: Api, namespace: str, operators: Operators, kubelet: FakeKubelet, audit: AuditLog
) -> None:
    operator = operators.start().wait_active()
    team = Team(api, namespace, operator)
    team.record("first")
    team.serve({"name": "routing", "pin": {"checkpoint": "first"}})
    team.until_served(routing="first")
    served = team.endpoint()["status"]
    assert [(each["name"], each["weight"]) for each in served["revisions"]] == [(served["revision"], 100)]
    operator.terminate()
    before = [{key: each[key] for key in each if key != "weight"} for each in served["revisions"]]
    api.patch("InferenceDeployment", namespace, "support", {"status": {"revisions": before}}, "status")

    def writes_of_next(name: str) -> list[str]:
        """Writes of a new process until it has reconciled every object."""
        mark = audit.mark()
        following = operators.start(name).wait_active()
        until_all_reconciled(api, namespace, following)
        writes = audit.writes(mark, operators.user)
        following.terminate()
        return [each.resource for each in writes if each.name == "support"]

    assert writes_of_next("operator-1") == ["inferencedeployments/status"]
    assert team.endpoint()["status"]["revisions"] == served["revisions"]
    assert writes_of_next("operator-2") == []
