# SPDX-License-Identifier: Apache-2.0
"""The chart's rights with one missing: the operator reports which one, and no process ends because of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import rights
from tests.fakekubelet import FakeKubelet, Object
from tests.integration import manifests
from tests.integration.api import Api
from tests.integration.chain import until_condition
from tests.integration.operators import IMAGE, LEASE_SECONDS, Operator
from tests.integration.rightscases import (
    FINALIZERS,
    IN_A_NAMESPACE,
    IN_A_PROCESS,
    LOG,
    PATIENCE_SECONDS,
    PROFILE,
    UNATTENDED,
    UNREPORTED,
    WATCHED,
    Case,
    a_record_of_rows,
)
from tests.rights import CLUSTER, NAMESPACES, OWN, Right
from tests.waiting import eventually
from tools.cluster import ControlPlane

SYSTEM = "rights-system"
POD_IP = "10.20.30.40"
LISTS = [f"list {resource}" for resource in WATCHED]
HALF_BLIND = {"seen": (), "without-records": ("list checkpoints",), "without-pods": ("list pods",)}
"""Namespaces of one process, and the rights that are missing there."""
RBAC = "/apis/rbac.authorization.k8s.io/v1"


class Grants:
    """Grants the chart's rights to users, except some."""

    def __init__(self, api: Api, granted: frozenset[Right]) -> None:
        self._api = api
        self._granted = sorted(granted)

    def in_namespace(self, user: str, role: str, namespace: str, *missing: str) -> None:
        """Grant one of the chart's roles in one namespace."""
        where = f"{RBAC}/namespaces/{namespace}/role"
        self._bind(user, f"{user}-{role}", "Role", where, self._rules(role, missing))

    def in_the_cluster(self, user: str, *missing: str) -> None:
        """Grant the chart's role for the cluster."""
        self._bind(user, user, "ClusterRole", f"{RBAC}/clusterrole", self._rules(CLUSTER, missing))

    def give_back(self, user: str, role: str, namespace: str) -> None:
        """Grant all rights of a role that lacked one."""
        path = f"{RBAC}/namespaces/{namespace}/roles/{user}-{role}"
        rules = {"rules": self._rules(role, ())}
        self._api.request(
            "PATCH", path, rules, Content_Type="application/merge-patch+json"
        ).raise_for_status()

    def _rules(self, role: str, missing: tuple[str, ...]) -> list[Object]:
        return [r.rule() for r in self._granted if r.role == role and str(r) not in missing]

    def _bind(self, user: str, name: str, kind: str, path: str, rules: list[Object]) -> None:
        reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name}
        subject = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}
        metadata = {"metadata": {"name": name}}
        for plural, body in (
            (f"{path}s", {**metadata, "rules": rules}),
            (f"{path}bindings", {**metadata, "roleRef": reference, "subjects": [subject]}),
        ):
            self._api.request("POST", plural, body).raise_for_status()


class Processes:
    """Operator processes, each with its own user."""

    def __init__(self, control_plane: ControlPlane, folder: Path) -> None:
        self._control_plane = control_plane
        self._folder = folder
        self.started: dict[str, Operator] = {}

    def start(self, user: str, system: str, watched: list[str]) -> Operator:
        environment = {
            "POD_NAMESPACE": system,
            "POD_IP": POD_IP,
            "WATCH_NAMESPACES": ",".join(watched),
            "TRAINER_IMAGE": IMAGE,
            "LEASE_NAME": rights.RELEASE,
            "LEASE_DURATION_SECONDS": str(LEASE_SECONDS),
            "REPORT_SERVICE": f"{rights.RELEASE}-report",
        }
        kubeconfig = self._control_plane.client(user, administrator=False)
        operator = Operator(user, kubeconfig, self._folder / f"{user}.log", environment)
        self.started[user] = operator
        return operator


class Attended:
    """The pods of some namespaces, for the fake kubelet."""

    def __init__(self, api: Api, namespaces: frozenset[str]) -> None:
        self._api = api
        self._namespaces = namespaces

    def list(self, kind: str, namespace: str) -> list[Object]:
        everywhere = self._api.list(kind, namespace)
        return [each for each in everywhere if each["metadata"]["namespace"] in self._namespaces]

    def patch(self, kind: str, namespace: str, name: str, body: Object, subresource: str = "") -> Object:
        return self._api.patch(kind, namespace, name, body, subresource)


@pytest.fixture(scope="module")
def granted() -> frozenset[Right]:
    return rights.granted(rights.rendered(SYSTEM))


@pytest.fixture(scope="module")
def grants(api: Api, granted: frozenset[Right]) -> Grants:
    return Grants(api, granted)


@pytest.fixture(scope="module")
def processes(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    processes = Processes(control_plane, tmp_path_factory.mktemp("operators"))
    yield processes
    for operator in processes.started.values():
        operator.kill()


def namespace_of(right: str, lacked_by: str = "lacks") -> str:
    return f"{lacked_by}-" + right.replace(" ", "-").replace("/", "-")


def namespace_of_process(right: str) -> str:
    """Namespace of a process that lacks a right as a whole, other than that of `namespace_of`."""
    return namespace_of(right, "process-lacks")


def make_namespace(api: Api, name: str) -> str:
    api.request("POST", "/api/v1/namespaces", {"metadata": {"name": name}}).raise_for_status()
    return name


def begin(api: Api, case: Case, namespace: str) -> None:
    for claim in ("artifacts", "models"):
        api.create(manifests.claim(namespace, claim))
    case.begin(api, namespace)


@pytest.fixture(scope="module")
def short_of_one(api: Api, grants: Grants, processes: Processes) -> Iterator[Operator]:
    """A process that watches many namespaces and lacks a different right in each."""
    user = "short-of-one"
    make_namespace(api, SYSTEM)
    grants.in_namespace(user, OWN, SYSTEM)
    grants.in_the_cluster(user)
    api.create(manifests.profile(PROFILE))
    for right, case in IN_A_NAMESPACE.items():
        namespace = make_namespace(api, namespace_of(right))
        grants.in_namespace(user, NAMESPACES, namespace, right)
        begin(api, case, namespace)
    attended = frozenset(namespace_of(right) for right in IN_A_NAMESPACE.keys() - UNATTENDED)
    kubelet = FakeKubelet(Attended(api, attended), "")
    watched = [namespace_of(right) for right in IN_A_NAMESPACE]
    # The API server delays some of these many lists and watches.
    yield processes.start(user, SYSTEM, watched).wait_active(3 * PATIENCE_SECONDS)
    kubelet.close()


@pytest.fixture(scope="module")
def blind(api: Api, grants: Grants, processes: Processes) -> Operator:
    """A process that must not list certain types, each in one namespace."""
    user = "blind"
    system = make_namespace(api, user)
    grants.in_namespace(user, OWN, system)
    grants.in_the_cluster(user)
    namespaces = {right: make_namespace(api, namespace_of(right)) for right in LISTS}
    for right, namespace in namespaces.items():
        grants.in_namespace(user, NAMESPACES, namespace, right)
    return processes.start(user, system, list(namespaces.values()))


@pytest.fixture(scope="module")
def lacking(api: Api, grants: Grants, processes: Processes, short_of_one: Operator) -> dict[str, Operator]:
    """One process per right of a process as a whole, which lacks it."""
    started = {}
    for right, case in IN_A_PROCESS.items():
        user = namespace_of_process(right)
        namespace = make_namespace(api, user)
        for role in (OWN, NAMESPACES):
            grants.in_namespace(user, role, namespace, right)
        grants.in_the_cluster(user, right)
        begin(api, case, namespace)
        started[right] = processes.start(user, namespace, [namespace])
    return started


@pytest.fixture(scope="module")
def unfinishing(api: Api, grants: Grants, processes: Processes) -> Operator:
    """A process that must not write finalizers or read namespaces."""
    user = "unfinishing"
    system = make_namespace(api, user)
    grants.in_namespace(user, OWN, system)
    grants.in_the_cluster(user, *FINALIZERS)
    namespaces = {right: make_namespace(api, namespace_of(right)) for right in FINALIZERS}
    for right, namespace in namespaces.items():
        grants.in_namespace(user, NAMESPACES, namespace)
        FINALIZERS[right].begin(api, namespace)
    return processes.start(user, system, list(namespaces.values()))


@pytest.fixture(scope="module")
def half_blind(api: Api, grants: Grants, processes: Processes) -> Operator:
    """A process that may list all types in one namespace, but not in two others."""
    user = "half-blind"
    system = make_namespace(api, user)
    grants.in_namespace(user, OWN, system)
    grants.in_the_cluster(user)
    for namespace, missing in HALF_BLIND.items():
        grants.in_namespace(user, NAMESPACES, make_namespace(api, namespace), *missing)
        api.create(manifests.claim(namespace, "artifacts"))
    return processes.start(user, system, list(HALF_BLIND)).wait_active()


def conditions(api: Api, kind: str, namespace: str) -> list[str]:
    return [
        f"{each['reason']}: {each['message']}"
        for found in api.list(kind, namespace)
        for each in found.get("status", {}).get("conditions", ())
    ]


def assert_named(api: Api, operator: Operator, right: str, case: Case, namespace: str) -> None:
    """Wait until the condition or log that the case names reports the missing right."""
    verb, resource = right.split()
    expected = case.message or f'cannot {verb} resource "{resource}" in API group'

    def is_reported() -> bool:
        if case.repeat:
            case.action(api, namespace, operator)
        if case.reported_on == LOG:
            return any(expected in line and namespace in line for line in operator.log.splitlines())
        texts = conditions(api, case.reported_on, namespace)
        return any(text.startswith("Forbidden: ") and expected in text for text in texts)

    def describe() -> str:
        lines = [line for line in operator.log.splitlines() if namespace in line]
        return "\n".join(
            [*(conditions(api, case.reported_on, namespace) if case.reported_on else ()), *lines[-20:]]
        )

    if not case.repeat:
        case.action(api, namespace, operator)
    where = case.reported_on or "the log"
    expectation = f"{where} reports that {right} is missing"
    eventually(expectation, is_reported, PATIENCE_SECONDS, describe, progress=describe)


@pytest.mark.parametrize("right", IN_A_NAMESPACE)
def test_a_right_that_is_missing_in_a_namespace_is_named(
    api: Api, short_of_one: Operator, right: str
) -> None:
    case, namespace = IN_A_NAMESPACE[right], namespace_of(right)
    assert_named(api, short_of_one, right, case, namespace)


@pytest.mark.parametrize("right", LISTS)
def test_a_type_that_may_not_be_listed_is_named(api: Api, blind: Operator, right: str) -> None:
    assert_named(api, blind, right, Case(LOG), namespace_of(right))


@pytest.mark.parametrize("right", IN_A_PROCESS)
def test_a_right_that_a_process_lacks_is_named(api: Api, lacking: dict[str, Operator], right: str) -> None:
    case, operator = IN_A_PROCESS[right], lacking[right]
    assert_named(api, operator, right, case, namespace_of_process(right))


@pytest.mark.parametrize("right", FINALIZERS)
def test_a_right_on_what_has_a_finalizer_is_named(api: Api, unfinishing: Operator, right: str) -> None:
    assert_named(api, unfinishing, right, FINALIZERS[right], namespace_of(right))


def test_a_namespace_whose_rights_go_before_its_records_is_not_held_up(
    api: Api, grants: Grants, processes: Processes
) -> None:
    user = "outlived"
    namespace = make_namespace(api, f"{user}-team")
    grants.in_namespace(user, OWN, make_namespace(api, user))
    grants.in_namespace(user, NAMESPACES, namespace)
    grants.in_the_cluster(user)
    a_record_of_rows(api, namespace)
    operator = processes.start(user, user, [namespace]).wait_active()
    eventually(
        "the record has the finalizer",
        lambda: api.list("DatasetVersion", namespace)[0]["metadata"].get("finalizers"),
    )
    binding = f"{RBAC}/namespaces/{namespace}/rolebindings/{user}-{NAMESPACES}"
    for path in (binding, f"/api/v1/namespaces/{namespace}"):
        api.request("DELETE", path).raise_for_status()
    eventually(
        "the namespace is gone",
        lambda: api.get("Namespace", "", namespace) is None,
        PATIENCE_SECONDS,
        lambda: operator.log[-4000:],
    )


def test_without_the_right_to_namespaces_only_profiles_that_select_them_by_labels_are_unusable(
    api: Api, grants: Grants, processes: Processes, short_of_one: Operator
) -> None:
    user = "unlabelled"
    namespace = make_namespace(api, f"{user}-team")
    grants.in_namespace(user, OWN, make_namespace(api, user))
    grants.in_namespace(user, NAMESPACES, namespace)
    grants.in_the_cluster(user, "get namespaces")
    selecting = manifests.profile(f"{PROFILE}-by-labels")
    selecting["spec"]["namespaces"] = {"selector": {"matchLabels": {"example.com/gpus": "true"}}}
    api.create(selecting)
    for claim in ("artifacts", "models"):
        api.create(manifests.claim(namespace, claim))
    own_rows = {"source": {"uri": "configmap://tickets/rows.jsonl"}}
    for name, profile in (("waits", f"{PROFILE}-by-labels"), ("runs", PROFILE)):
        compute = {"profile": profile}
        api.create(manifests.finetunejob(namespace, name, dataset=own_rows, compute=compute))
    operator = processes.start(user, user, [namespace]).wait_active()

    def reason(name: str) -> str | None:
        found = api.get("FineTuneJob", namespace, name)
        return manifests.condition(found, "Reconciling").get("reason")

    def describe() -> str:
        return "\n".join([*conditions(api, "FineTuneJob", namespace), operator.log[-4000:]])

    eventually("the one waits", lambda: reason("waits") == "Forbidden", PATIENCE_SECONDS, describe)
    eventually("the other one runs", lambda: api.list("Job", namespace), PATIENCE_SECONDS, describe)
    (job,) = api.list("Job", namespace)
    assert job["metadata"]["ownerReferences"][0]["name"] == "runs"
    expected = 'cannot get resource "namespaces" in API group'
    assert any(expected in text for text in conditions(api, "FineTuneJob", namespace))
    api.delete("ComputeProfile", "", f"{PROFILE}-by-labels")


def test_what_was_refused_goes_on_when_the_right_is_there_again(
    api: Api, grants: Grants, short_of_one: Operator
) -> None:
    namespace = namespace_of("create jobs")
    grants.give_back("short-of-one", NAMESPACES, namespace)
    # An edit causes a pass at once; otherwise the next retry is up to five minutes away.
    api.patch("Dataset", namespace, "tickets", {"metadata": {"annotations": {"seen": "yes"}}})
    until_condition(api, (namespace, "FineTuneJob", "routing"), "Ready", short_of_one)


def test_a_namespace_that_may_not_be_listed_is_left_alone_until_it_may_and_holds_up_no_other(
    api: Api, grants: Grants, half_blind: Operator
) -> None:
    blind = [namespace for namespace, missing in HALF_BLIND.items() if missing]
    for namespace in (*blind, "seen"):
        api.create(manifests.dataset(namespace))
    eventually(
        "the other one is served",
        lambda: api.list("Job", "seen"),
        describe=lambda: half_blind.log[-4000:],
    )
    for namespace in blind:
        (rows,) = api.list("Dataset", namespace)
        assert rows["status"] == {"observedGeneration": -1}
        assert not api.list("Job", namespace)
        assert f"so it does nothing in namespace {namespace}" in half_blind.log
        grants.give_back("half-blind", NAMESPACES, namespace)
    for namespace in blind:
        eventually(
            f"{namespace} is served",
            lambda namespace=namespace: api.list("Job", namespace),  # type: ignore[misc]
            PATIENCE_SECONDS,
            lambda: half_blind.log[-4000:],
        )


def test_no_process_has_ended_for_want_of_a_right(
    short_of_one: Operator,
    blind: Operator,
    half_blind: Operator,
    unfinishing: Operator,
    lacking: dict[str, Operator],
) -> None:
    for operator in (short_of_one, blind, half_blind, unfinishing, *lacking.values()):
        assert operator.process.poll() is None, operator.log[-4000:]
        assert operator.status_of("healthz") == 200


def test_every_right_that_the_chart_grants_is_looked_at_here(granted: frozenset[Right]) -> None:
    assert {str(right) for right in granted} == {
        *IN_A_NAMESPACE, *LISTS, *FINALIZERS, *IN_A_PROCESS, *UNREPORTED
    }  # fmt: skip
