# SPDX-License-Identifier: Apache-2.0
"""Changes by others in the Deployment of an endpoint, on a real API server."""

from collections.abc import Iterator

import httpx
import pytest

from tests.fakekubelet import FakeKubelet
from tests.integration.api import Api, Object, path_of
from tests.integration.chain import until_settled
from tests.integration.operators import Operators
from tests.integration.team import Team
from tests.waiting import eventually
from tools.cluster.audit import AuditLog

PINNED = {"name": "routing", "pin": {"checkpoint": "first"}}
POLICIES = "/apis/admissionregistration.k8s.io/v1/mutatingadmissionpolic"
MIRROR = "mirror.example/trainer:1"


@pytest.fixture
def team(api: Api, namespace: str, operators: Operators, kubelet: FakeKubelet) -> Team:
    team = Team(api, namespace, operators.start().wait_active())
    team.record("first")
    return team


@pytest.fixture
def mirrored(api: Api, namespace: str) -> Iterator[str]:
    """An admission policy that replaces the image of the first container of each Deployment."""
    if api.request("GET", f"{POLICIES}ies").status_code == httpx.codes.NOT_FOUND:
        pytest.skip("MutatingAdmissionPolicy is stable since Kubernetes 1.36")
    operations = ["CREATE", "UPDATE"]
    rule = {
        "apiGroups": ["apps"],
        "apiVersions": ["v1"],
        "operations": operations,
        "resources": ["deployments"],
    }
    selector = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    change = (
        f'[JSONPatch{{op: "replace", path: "/spec/template/spec/containers/0/image", value: "{MIRROR}"}}]'
    )
    policy = {
        "metadata": {"name": namespace},
        "spec": {
            "matchConstraints": {"resourceRules": [rule], "namespaceSelector": selector},
            "failurePolicy": "Fail",
            "reinvocationPolicy": "Never",
            "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": change}}],
        },
    }
    binding = {"metadata": {"name": namespace}, "spec": {"policyName": namespace}}
    api.request("POST", f"{POLICIES}ies", policy).raise_for_status()
    api.request("POST", f"{POLICIES}ybindings", binding).raise_for_status()
    labels = {"app": "probe"}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "main", "image": "own:1"}]}}
    probe = {
        "metadata": {"name": "probe"},
        "spec": {"selector": {"matchLabels": labels}, "template": template},
    }
    path = f"{path_of('Deployment', namespace)}?dryRun=All"
    eventually("the policy is in force", lambda: image(api.request("POST", path, probe).json()) == MIRROR)
    yield namespace
    for kind in ("ybindings", "ies"):
        api.request("DELETE", f"{POLICIES}{kind}/{namespace}").raise_for_status()


def deployment(api: Api, namespace: str) -> Object:
    (found,) = api.list("Deployment", namespace)
    return found


def image(found: Object) -> str:
    text: str = found["spec"]["template"]["spec"]["containers"][0]["image"]
    return text


def edit(api: Api, found: Object, container: Object) -> None:
    """Send the request of `kubectl edit` or `kubectl set`."""
    body = {"spec": {"template": {"spec": {"containers": [{"name": "engine", **container}]}}}}
    path = path_of("Deployment", found["metadata"]["namespace"], found["metadata"]["name"])
    answer = api.request(
        "PATCH", f"{path}?fieldManager=somebody", body, Content_Type="application/strategic-merge-patch+json"
    )
    answer.raise_for_status()


def test_what_somebody_edits_is_put_back_once_and_stays_when_the_endpoint_is_scaled(
    api: Api, namespace: str, team: Team, operators: Operators, audit: AuditLog
) -> None:
    team.serve(PINNED)
    team.until_served("support", routing="first")
    until_settled(audit, operators.user)
    created = deployment(api, namespace)
    assert created["metadata"]["generation"] == 1, "what was just created is no drift"
    mark = audit.mark()

    edit(
        api,
        created,
        {
            "image": "registry.example/other:9",
            "resources": {"limits": {"memory": "64Gi"}},
        },
    )
    eventually(
        "the edit is undone",
        lambda: deployment(api, namespace)["spec"] == created["spec"],
        describe=lambda: team.operator.log,
    )
    until_settled(audit, operators.user)
    writes = [(each.verb, each.resource) for each in audit.writes(mark, operators.user)]
    assert [write for write in writes if write[1] == "deployments"] == [("patch", "deployments")]
    events = [each for each in api.list("Event", namespace) if each["reason"] == "DriftCorrected"]
    assert "containers[engine].image" in events[0]["message"]

    # Scaling uses another field manager, which every release has; it must not change the image.
    api.patch("InferenceDeployment", namespace, "support", {"spec": {"replicas": 2}})
    eventually("it is scaled", lambda: deployment(api, namespace)["spec"]["replicas"] == 2)
    assert deployment(api, namespace)["spec"]["template"] == created["spec"]["template"]


def test_what_admission_changes_each_time_is_put_back_once_and_reported(
    api: Api, mirrored: str, team: Team, operators: Operators, audit: AuditLog
) -> None:
    team.serve(PINNED)
    team.until_served("support", routing="first")
    message = team.until_reason("InferenceDeployment", "support", "InSync", "Overridden")
    assert "containers[engine].image" in message
    until_settled(audit, operators.user)
    mark = audit.mark()
    assert image(deployment(api, mirrored)) == MIRROR
    # Another pass writes nothing.
    api.patch("InferenceDeployment", mirrored, "support", {"metadata": {"labels": {"looked": "at"}}})
    until_settled(audit, operators.user)
    assert not [each for each in audit.writes(mark, operators.user) if each.resource == "deployments"]
