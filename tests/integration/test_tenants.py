# SPDX-License-Identifier: Apache-2.0
"""What users with a role in one namespace may do, and what the policy of profiles refuses."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import httpx
import pytest

from finetune_operator.api.compute_profile import DEFAULT_PROFILE_LABEL
from finetune_operator.manifests.labels import INSTALLATION, INSTALLATION_LEASE, WATCHED
from tests.fakekubelet import FakeKubelet
from tests.integration import manifests
from tests.integration.api import Api, Object, path_of
from tests.integration.chain import until_condition
from tests.integration.operators import Operators
from tests.waiting import eventually
from tools.cluster import ClusterError, ControlPlane

PAGE: Final = Path(__file__).parents[2] / "docs" / "tenants.md"
ROW: Final = re.compile(r"^\| [^|]+ \| `(\w+) ([\w/]+)` \|((?: (?:yes|no) \|)+)$", re.MULTILINE)
ROLES: Final = ("", "view", "edit", "finetune-operator-approver", "admin")
"""Columns of the table."""
GROUPS: Final = {"pods": "", "secrets": ""}
CLUSTER: Final = {"computeprofiles"}
CONTENT: Final = {"POST": "application/json", "PATCH": "application/merge-patch+json"}
SPECS: Final[dict[str, Object]] = {
    "FineTuneJob": {
        "modelLine": "routing",
        "baseModel": {"uri": "pvc://models/tiny"},
        "dataset": {"ref": {"name": "tickets"}},
    },
    "Evaluation": {"checkpoints": ["routing-1"], "dataset": {"ref": {"name": "tickets"}}},
    "InferenceDeployment": {
        "baseModel": {"uri": "pvc://models/tiny"},
        "models": [{"name": "routing", "follow": {"modelLine": "routing"}}],
    },
}
NAME_LABEL: Final = "kubernetes.io/metadata.name"
CONDITIONS: Final[dict[str, tuple[Object, bool]]] = {
    "in-ours": ({"key": NAME_LABEL, "operator": "In", "values": ["team-b", "team-a"]}, True),
    "in-theirs": ({"key": NAME_LABEL, "operator": "In", "values": ["team-b"]}, False),
    "in-absent": ({"key": "absent", "operator": "In", "values": ["team-a"]}, False),
    "not-in-theirs": ({"key": NAME_LABEL, "operator": "NotIn", "values": ["team-b"]}, True),
    "not-in-ours": ({"key": NAME_LABEL, "operator": "NotIn", "values": ["team-a"]}, False),
    "not-in-absent": ({"key": "absent", "operator": "NotIn", "values": ["team-a"]}, True),
    "exists": ({"key": NAME_LABEL, "operator": "Exists"}, True),
    "exists-absent": ({"key": "absent", "operator": "Exists"}, False),
    "absent": ({"key": "absent", "operator": "DoesNotExist"}, True),
    "absent-present": ({"key": NAME_LABEL, "operator": "DoesNotExist"}, False),
}
"""Conditions on the labels of namespaces, and whether those of team-a meet them."""
PROFILES: Final[dict[str, Object]] = {
    **{
        name: {"namespaces": {"selector": {"matchExpressions": [condition]}}}
        for name, (condition, _) in CONDITIONS.items()
    },
    "open": {},
    "theirs": {"namespaces": {"names": ["team-b"]}},
    "withdrawn": {"namespaces": {"names": ["team-a"]}},
    "by-label": {"namespaces": {"selector": {"matchLabels": {NAME_LABEL: "team-a"}}}},
    "ours": {
        "namespaces": {"names": ["team-a"]},
        "kueue": {
            "queues": {"train": "night"},
            "allowedQueues": ["spare"],
            "workloadPriorityClasses": {"train": "low"},
            "allowedWorkloadPriorityClasses": ["high"],
        },
    },
}
REVIEWS: Final = "/apis/authorization.k8s.io/v1/subjectaccessreviews"


def user_of(role: str) -> str:
    return f"user-of-{role or 'no-role'}"


def table() -> list[tuple[str, str, str, bool]]:
    """Verb, resource, role and answer of each cell of the page's table."""
    cells = []
    for verb, resource, answers in ROW.findall(PAGE.read_text()):
        given = [answer.strip() == "yes" for answer in answers.strip("|").split("|")]
        cells += [(verb, resource, role, answer) for role, answer in zip(ROLES, given, strict=True)]
    return cells


class Tenant:
    """A namespace with a user of each role."""

    def __init__(self, api: Api, cluster: ControlPlane, namespace: str) -> None:
        self.api = api
        self.kubectl = cluster.kubectl
        self.namespace = namespace
        for role in filter(None, ROLES):
            self.kubectl.run(
                *("create", "rolebinding", user_of(role), f"--clusterrole={role}", f"--user={user_of(role)}"),
                f"--namespace={namespace}",
            )

    def may(self, role: str, verb: str, resource: str, namespace: str | None = None) -> bool:
        name, _, subresource = resource.partition("/")
        attributes = {
            "namespace": "" if name in CLUSTER else namespace or self.namespace,
            "verb": verb,
            "group": GROUPS.get(name, "finetune.dev"),
            "resource": name,
            "subresource": subresource,
        }
        spec = {"user": user_of(role), "groups": ["system:authenticated"], "resourceAttributes": attributes}
        answer = self.api.request("POST", REVIEWS, {"spec": spec}).raise_for_status()
        return bool(answer.json()["status"]["allowed"])

    def refusal(self, verb: str, manifest: Object) -> str:
        """The API server's refusal of an editor's request, or an empty string; POST changes nothing."""
        path = path_of(
            manifest["kind"], self.namespace, manifest["metadata"]["name"] if verb == "PATCH" else ""
        )
        query = "?dryRun=All" if verb == "POST" else ""
        headers = {"Impersonate_User": user_of("edit"), "Content_Type": CONTENT[verb]}
        answer = self.api.request(verb, path + query, manifest, **headers)
        if answer.status_code == httpx.codes.FORBIDDEN:
            return str(answer.json()["message"])
        answer.raise_for_status()
        return ""

    def asks(self, kind: str = "FineTuneJob", **compute: str) -> str:
        """The refusal of a new object with this `spec.compute`."""
        return self.refusal("POST", new(kind, self.namespace, compute))


def new(kind: str, namespace: str, compute: Object, name: str = "new") -> Object:
    """An object with these settings. An Evaluation names its profile next to its other settings."""
    spec: Object = {"compute": compute}
    if kind == "Evaluation" and "profile" in compute:
        spec = {"profile": compute["profile"], "compute": {**compute}}
        del spec["compute"]["profile"]
    return manifests.of(kind, namespace, name, SPECS[kind] | spec)


@pytest.fixture(scope="module")
def other(api: Api) -> str:
    """A namespace in which no user of the tenant has a role."""
    api.request("POST", "/api/v1/namespaces", {"metadata": {"name": "other"}}).raise_for_status()
    return "other"


@pytest.fixture(scope="module")
def tenant(api: Api, installed: ControlPlane) -> Tenant:
    api.request("POST", "/api/v1/namespaces", {"metadata": {"name": "team-a"}}).raise_for_status()
    made = Tenant(api, installed, "team-a")
    eventually("the cluster's role edit has our kinds", lambda: made.may("edit", "create", "finetunejobs"))
    return made


@pytest.fixture(scope="module")
def profiles(api: Api, tenant: Tenant) -> Iterator[Tenant]:
    """Profiles of several teams, and the active policy."""
    for name, spec in PROFILES.items():
        api.create(manifests.profile(name) | {"spec": spec})
    eventually("the policy refuses a profile of another team", lambda: tenant.asks(profile="theirs"))
    yield tenant
    for name in PROFILES:
        api.delete("ComputeProfile", "", name)


def test_each_role_may_do_what_the_page_says_in_its_namespace_and_nothing_in_another(
    tenant: Tenant, other: str
) -> None:
    cells = table()
    assert {role for *_, role, _ in cells} == set(ROLES)
    for verb, resource, role, answer in cells:
        assert (verb, resource, role, tenant.may(role, verb, resource)) == (verb, resource, role, answer)
        if resource not in CLUSTER:
            assert not tenant.may(role, verb, resource, other), (verb, resource, role)


def test_an_editor_lists_all_kinds_of_one_namespace_with_one_command(
    api: Api, tenant: Tenant, other: str
) -> None:
    for namespace in (tenant.namespace, other):
        api.create(manifests.finetunejob(namespace, f"run-of-{namespace}"))
    editor = f"--as={user_of('edit')}"
    listed = tenant.kubectl.run("get", "finetune", f"--namespace={tenant.namespace}", editor)
    assert "run-of-team-a" in listed
    assert "run-of-other" not in listed
    with pytest.raises(ClusterError, match="forbidden"):
        tenant.kubectl.run("get", "finetune", f"--namespace={other}", editor)


def test_a_lease_of_an_editor_stops_no_operator(
    api: Api, tenant: Tenant, namespace: str, operators: Operators, kubelet: FakeKubelet
) -> None:
    """It has every mark that an operator ever put on its own Lease, is older than any, and is renewed."""
    api.create(manifests.installation(namespace, "finetune-operator"))
    lease: Object = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {
            "name": "finetune-operator",
            "namespace": tenant.namespace,
            "labels": {INSTALLATION: "true"},
            "annotations": {INSTALLATION_LEASE: f"{tenant.namespace}/finetune-operator", WATCHED: "*"},
        },
    }
    times = itertools.count()

    def renew() -> None:
        """The API server lets the editor write the Lease."""
        spec = {"acquireTime": "2000-01-01T00:00:00.000000Z", "holderIdentity": f"anyone-{next(times)}"}
        path = path_of("Lease", tenant.namespace, "finetune-operator") + "?fieldManager=ann&force=true"
        headers = {"Impersonate_User": user_of("edit"), "Content_Type": "application/apply-patch+yaml"}
        api.request("PATCH", path, lease | {"spec": spec}, **headers).raise_for_status()

    def is_ready() -> bool:
        renew()
        return manifests.is_true(api.get("FineTuneJob", namespace, "routing"), "Ready")

    renew()
    api.create(manifests.dataset(namespace))
    api.create(manifests.finetunejob(namespace))
    operator = operators.start()
    eventually("the run of the other team is ready", is_ready, describe=lambda: operator.log[-4000:])
    assert operator.metric("finetune_other_installation") == 0
    refused = api.request(
        "POST",
        path_of("ClusterRoleBinding", ""),
        manifests.installation(tenant.namespace, "finetune-operator"),
        Impersonate_User=user_of("edit"),
    )
    assert refused.status_code == httpx.codes.FORBIDDEN


def test_large_objects_of_an_editor_stop_no_run_of_another_team(
    api: Api,
    installed: ControlPlane,
    namespace: str,
    operators: Operators,
    kubelet: FakeKubelet,
) -> None:
    """2 MiB in annotations that the operator reads, with the bound at 1 MiB per namespace."""
    hostile = f"{namespace}-hostile"
    api.request("POST", "/api/v1/namespaces", {"metadata": {"name": hostile}}).raise_for_status()
    Tenant(api, installed, hostile)
    services = [f"large-{number}" for number in range(10)]
    for name in services:
        metadata = {
            "name": name,
            "labels": {"app.kubernetes.io/managed-by": "finetune-operator"},
            "annotations": {"finetune.dev/created-spec": "x" * 200_000},
        }
        made = api.request(
            "POST",
            path_of("Service", hostile),
            {"metadata": metadata, "spec": {"ports": [{"port": 80}]}},
            Impersonate_User=user_of("edit"),
        )
        made.raise_for_status()
    api.create(manifests.dataset(hostile))
    api.create(manifests.dataset(namespace))
    api.create(manifests.finetunejob(namespace))
    operator = operators.start(
        WATCH_NAMESPACES=f"{namespace},{hostile}", MAX_NAMESPACE_MEBIBYTES="1", RELIST_SECONDS="3"
    )
    until_condition(api, (namespace, "FineTuneJob", "routing"), "Ready", operator)
    assert operator.metric("finetune_large_namespaces") == 1

    def reason() -> str | None:
        return manifests.condition(api.get("Dataset", hostile, "tickets"), "Reconciling").get("reason")

    eventually("its own Dataset says why", lambda: reason() == "NamespaceTooLarge")
    for name in services:
        api.delete("Service", hostile, name)
    eventually(
        "all objects of its namespace are read again",
        lambda: operator.metric("finetune_large_namespaces") == 0 and reason() != "NamespaceTooLarge",
        60,
        lambda: operator.log[-4000:],
    )


@pytest.mark.parametrize("kind", SPECS)
def test_a_profile_of_another_team_is_refused(profiles: Tenant, kind: str) -> None:
    refusal = profiles.asks(kind, profile="theirs")
    assert "namespace team-a is not allowed to use ComputeProfile theirs" in refusal
    field = "spec.profile" if kind == "Evaluation" else "spec.compute.profile"
    assert f"name another one in {field}, or ask the platform team" in refusal
    for allowed in ("ours", "by-label", "open", "not-there-yet"):
        assert profiles.asks(kind, profile=allowed) == ""


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_profile_that_selects_namespaces_by_conditions_is_refused_to_all_others(
    profiles: Tenant, name: str
) -> None:
    assert (profiles.asks(profile=name) == "") is CONDITIONS[name][1]


def test_a_run_cannot_evaluate_with_a_profile_of_another_team(profiles: Tenant) -> None:
    def refusal(profile: str) -> str:
        run = new("FineTuneJob", profiles.namespace, {"profile": "ours"})
        run["spec"]["evaluation"] = {"profile": profile}
        return profiles.refusal("POST", run)

    assert "ComputeProfile theirs: name another one in spec.evaluation.profile" in refusal("theirs")
    for allowed in ("ours", "by-label", "open", "not-there-yet"):
        assert refusal(allowed) == ""


def test_an_object_without_a_profile_is_checked_against_the_default_one(api: Api, profiles: Tenant) -> None:
    assert profiles.asks() == ""
    marks = {"metadata": {"annotations": {DEFAULT_PROFILE_LABEL: None}}}
    api.patch("ComputeProfile", "", "default", marks)
    api.patch("ComputeProfile", "", "theirs", {"metadata": {"labels": {DEFAULT_PROFILE_LABEL: "true"}}})
    eventually("the default profile is refused", lambda: "ComputeProfile theirs" in profiles.asks())
    api.patch("ComputeProfile", "", "theirs", {"metadata": {"labels": {DEFAULT_PROFILE_LABEL: None}}})
    eventually("no profile is the default", lambda: profiles.asks() == "")


@pytest.mark.parametrize(
    ("field", "offered", "words"),
    [
        ("queueName", ("night", "spare"), "kueue.allowedQueues of ComputeProfile ours"),
        ("workloadPriorityClass", ("low", "high"), "allowedWorkloadPriorityClasses of ComputeProfile ours"),
    ],
)
def test_a_queue_or_priority_that_the_profile_does_not_offer_is_refused(
    profiles: Tenant, field: str, offered: tuple[str, ...], words: str
) -> None:
    for name in offered:
        assert profiles.asks(profile="ours", **{field: name}) == ""
    refusal = profiles.asks(profile="ours", **{field: "first-class"})
    assert f"spec.compute.{field} first-class" in refusal
    assert words in refusal


def test_a_run_can_be_suspended_after_its_profile_was_withdrawn(api: Api, profiles: Tenant) -> None:
    run = new("FineTuneJob", profiles.namespace, {"profile": "withdrawn"}, "mine")
    api.create(run)
    api.patch("ComputeProfile", "", "withdrawn", {"spec": {"namespaces": {"names": ["other"]}}})
    eventually("the profile is refused", lambda: profiles.asks(profile="withdrawn"))
    assert profiles.refusal("PATCH", run | {"spec": {"suspend": True}}) == ""
    found = api.get("FineTuneJob", profiles.namespace, "mine")
    assert found is not None
    assert found["spec"]["suspend"] is True
