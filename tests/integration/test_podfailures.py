# SPDX-License-Identifier: Apache-2.0
"""What controllers of a real control plane do to pods, and what the operator says of it.

All stories start at once and mostly wait: for a minute, Kubernetes does not give a silent node up.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from itertools import pairwise

import pytest

from finetune_operator.observe.pod_termination import OUT_OF_SERVICE
from finetune_operator.reconcile.inputs.related_types import SHARED_SECONDS
from tests.integration import manifests
from tests.integration.api import Api, Object, path_of
from tests.integration.manifests import condition
from tests.integration.operators import Operator, Operators
from tests.waiting import eventually
from tools.cluster import ControlPlane
from tools.cluster.audit import AuditLog
from tools.fakepods import running

SYSTEM = "failures"
REFUSALS = {
    "quota": ("QuotaExceeded", "exceeded quota: strict, requested: pods=1"),
    "limits": ("PodNotStarting", "maximum memory usage per Container is 1Mi, but limit is"),
}
STORIES = (*REFUSALS, "dead", "gone", "silent")
REFUSED_TOO = tuple(f"refused-{number}" for number in range(20))
"""Further Datasets in the namespace with the quota."""
PATIENCE_SECONDS = 120.0
NODES = "/api/v1/nodes"


def namespace_of(story: str) -> str:
    return f"{SYSTEM}-{story}"


def quota(namespace: str) -> Object:
    return of(namespace, "ResourceQuota", {"hard": {"pods": "0"}})


def limits(namespace: str) -> Object:
    return of(namespace, "LimitRange", {"limits": [{"type": "Container", "max": {"memory": "1Mi"}}]})


def of(namespace: str, kind: str, spec: Object) -> Object:
    metadata = {"name": "strict", "namespace": namespace}
    return {"apiVersion": "v1", "kind": kind, "metadata": metadata, "spec": spec}


@pytest.fixture(scope="module")
def operator(
    control_plane: ControlPlane, api: Api, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Operator]:
    """An operator that watches one namespace per story, each with a Dataset to prepare."""
    namespaces = [namespace_of(story) for story in STORIES]
    for namespace in (SYSTEM, *namespaces):
        api.request("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}}).raise_for_status()
    api.create(quota(namespace_of("quota")))
    api.create(limits(namespace_of("limits")))
    for namespace in namespaces:
        for claim in ("artifacts", "tickets"):
            api.create(manifests.claim(namespace, claim))
        api.create(manifests.dataset(namespace))
    for name in REFUSED_TOO:
        api.create(manifests.dataset(namespace_of("quota"), name))
    operators = Operators(control_plane, SYSTEM, tmp_path_factory.mktemp("operator"))
    yield operators.start(WATCH_NAMESPACES=",".join(namespaces)).wait_active()
    operators.stop_all()


@pytest.fixture(scope="module")
def lost(api: Api, operator: Operator) -> Mapping[str, Object]:
    """Pods whose nodes no kubelet speaks for. One pod is to end, one node is deleted, one is left alone."""
    pods = {story: run_on_node(api, story) for story in ("dead", "gone", "silent")}
    dead, gone = path_of("Pod", namespace_of("dead"), name_of(pods["dead"])), pods["gone"]["spec"]["nodeName"]
    for path in (f"{dead}?gracePeriodSeconds=1", f"{NODES}/{gone}"):
        api.request("DELETE", path).raise_for_status()
    return pods


def run_on_node(api: Api, story: str) -> Object:
    """Create a node, and let the pod of the story run on it, as scheduler and kubelet do."""
    namespace, node = namespace_of(story), f"node-{story}"
    api.request("POST", NODES, {"metadata": {"name": node}}).raise_for_status()
    say_of(api, node, "True")
    (pod,) = eventually("the prepare pod", lambda: api.list("Pod", namespace))
    target = {"kind": "Node", "name": node}
    binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name_of(pod)}, "target": target}
    path = f"{path_of('Pod', namespace, name_of(pod))}/binding"
    api.request("POST", path, binding).raise_for_status()
    status = running(pod)
    ready = [{"type": type_, "status": "True"} for type_ in ("Ready", "ContainersReady")]
    return api.patch("Pod", namespace, name_of(pod), {"status": {**status, "conditions": ready}}, "status")


def say_of(api: Api, node: str, ready: str) -> None:
    """Status of a node from its kubelet."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    state = {"type": "Ready", "status": ready, "lastHeartbeatTime": now, "lastTransitionTime": now}
    body = {"status": {"conditions": [state]}}
    answer = api.request(
        "PATCH", f"{NODES}/{node}/status", body, Content_Type="application/strategic-merge-patch+json"
    )
    answer.raise_for_status()


def name_of(pod: Object) -> str:
    name: str = pod["metadata"]["name"]
    return name


def until_said(api: Api, operator: Operator, story: str, reason: str, *parts: str) -> None:
    """Wait until the Dataset of a story is Reconciling with this reason and these texts."""
    namespace = namespace_of(story)

    def found() -> Object:
        return condition(api.get("Dataset", namespace, "tickets"), "Reconciling")

    def said() -> bool:
        state = found()
        return state.get("reason") == reason and all(part in state["message"] for part in parts)

    eventually(f"{reason} with {parts}", said, PATIENCE_SECONDS, lambda: f"{found()}\n{operator.log[-2000:]}")


def until_replaced(api: Api, story: str, pod: Object) -> None:
    """Wait until the Job has another pod, and check that it does not count the end of the first one."""
    namespace = namespace_of(story)

    def others() -> list[Object]:
        return [other for other in api.list("Pod", namespace) if name_of(other) != name_of(pod)]

    eventually(f"another pod than {name_of(pod)}", others, PATIENCE_SECONDS)
    (job,) = api.list("Job", namespace)
    assert job["status"].get("failed", 0) == 0


def test_a_pod_that_is_terminating_on_a_dead_node_is_lost_and_followed_when_somebody_says_so(
    control_plane: ControlPlane, api: Api, operator: Operator, lost: Mapping[str, Object]
) -> None:
    pod, namespace = lost["dead"], namespace_of("dead")
    step = f"kubectl taint node node-dead {OUT_OF_SERVICE}"
    until_said(api, operator, "dead", "NodeLost", "kubectl delete node node-dead", step)
    assert [name_of(each) for each in api.list("Pod", namespace)] == [name_of(pod)]
    control_plane.kubectl.run(*step.split()[1:])
    until_replaced(api, "dead", pod)
    until_said(api, operator, "dead", "Queued", "the prepare pod")


def test_a_pod_on_a_node_that_does_not_answer_is_lost_for_now(
    api: Api, operator: Operator, lost: Mapping[str, Object]
) -> None:
    until_said(api, operator, "silent", "NodeLost", "node node-silent", "does not respond")


def test_a_pod_whose_node_is_deleted_is_followed_by_another_one(
    api: Api, operator: Operator, lost: Mapping[str, Object]
) -> None:
    until_replaced(api, "gone", lost["gone"])


@pytest.mark.parametrize("story", REFUSALS)
def test_the_refusal_of_a_pod_is_quoted(
    api: Api, operator: Operator, lost: Mapping[str, Object], story: str
) -> None:
    reason, refusal = REFUSALS[story]
    until_said(api, operator, story, reason, f"the API server refuses the prepare pod: {refusal}")
    assert not api.list("Pod", namespace_of(story))
    # The operator takes a Job without this time for one that the Job controller has not seen yet.
    assert all(job["status"]["startTime"] for job in api.list("Job", namespace_of(story)))


def test_all_jobs_that_a_quota_refuses_share_one_list_of_events_per_interval(
    api: Api, operator: Operator, audit: AuditLog
) -> None:
    namespace = namespace_of("quota")

    def shown() -> Counter[str]:
        datasets = (each for each in api.list("Dataset", namespace) if name_of(each) in REFUSED_TOO)
        return Counter(condition(each, "Reconciling").get("reason", "") for each in datasets)

    expected = Counter({"QuotaExceeded": len(REFUSED_TOO)})
    eventually("each quotes it", lambda: shown() == expected, PATIENCE_SECONDS, lambda: str(shown()))

    reads = [
        each for each in audit.since(0) if each.user == f"operator-{SYSTEM}" and each.resource == "events"
    ]
    lists = {
        name: [each.at for each in reads if each.verb == "list" and each.namespace == name]
        for name in map(namespace_of, STORIES)
    }
    times = lists[namespace]
    assert times
    assert all((later - earlier).total_seconds() > SHARED_SECONDS - 1 for earlier, later in pairwise(times))
    assert not lists[namespace_of("silent")], "where each Job has its pod, nothing is read"
