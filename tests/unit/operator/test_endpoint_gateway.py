# SPDX-License-Identifier: Apache-2.0
"""Endpoints behind a gateway: the HTTPRoute, its weights in each transition, and what gateways report."""

from typing import Any

import pytest

from finetune_operator.api.endpoint_access import EndpointGateway
from finetune_operator.engine.errors import refusal
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.inferencedeployment.revision.revision_states import spec_hash
from tests.unit.operator.endpoints import (
    EndpointCluster,
    checkpoint,
    crashed_pod,
    endpoint,
    serving,
    states,
)

TRAFFIC: Manifest = {
    "gateway": {"parentRefs": [{"name": "public", "namespace": "infra"}], "hostnames": ["desk.example.com"]}
}
CONTROLLER = "traefik.io/gateway-controller"
STEPS: list[Manifest] = [
    {"setWeight": 5},
    {"pause": {"seconds": 60}},
    {"setWeight": 50},
    {"pause": {"seconds": 120}},
]
CANARY: Manifest = {"type": "Canary", "canary": {"steps": STEPS}}


def accept(cluster: EndpointCluster, generation: int | None = None, /, **verdicts: str) -> None:
    """Report on the route as the controller of the Gateway does, by default on its present generation."""
    route = cluster.routes["desk"]
    observed = route["metadata"]["generation"] if generation is None else generation
    conditions = [
        {
            "type": type_,
            "status": status,
            "reason": "Reason",
            "message": "why",
            "observedGeneration": observed,
        }
        for type_, status in {"Accepted": "True", "ResolvedRefs": "True", **verdicts}.items()
    ]
    entry = {
        "parentRef": dict(route["spec"]["parentRefs"][0]),
        "controllerName": CONTROLLER,
        "conditions": conditions,
    }
    cluster.routes["desk"] = {**route, "status": {"parents": [entry]}}


def settle(cluster: EndpointCluster) -> None:
    """Carry out passes while a gateway takes each change of the route and the pods become ready."""
    for _ in range(6):
        for name in cluster.deployments:
            cluster.make_ready(name)
        cluster.settle()
        accept(cluster)
    cluster.settle()


def behind_gateway(**spec: Any) -> tuple[EndpointCluster, str]:
    """An endpoint that serves behind a gateway, and its revision."""
    cluster = EndpointCluster(checkpoint("first", "1"), **{"traffic": TRAFFIC, **spec})
    cluster.settle()
    (revision,) = cluster.deployments
    settle(cluster)
    return cluster, revision


def started(replicas: int = 5, **strategy: Any) -> tuple[EndpointCluster, str, str]:
    """An endpoint whose second revision has started; the old revision and the new one."""
    cluster, old = behind_gateway(strategy={**CANARY, **strategy}, replicas=replicas)
    cluster.put(checkpoint("second", "2", promoted=10))
    cluster.settle()
    (new,) = set(cluster.deployments) - {old}
    return cluster, old, new


def begun(replicas: int = 5, **strategy: Any) -> tuple[EndpointCluster, str, str]:
    """An endpoint whose second revision is in the pause of its first step."""
    cluster, old, new = started(replicas, **strategy)
    settle(cluster)
    return cluster, old, new


def routed(cluster: EndpointCluster) -> dict[str, int]:
    """Weights of the rule without a header."""
    return {
        each["name"]: each["weight"] for each in cluster.routes["desk"]["spec"]["rules"][-1]["backendRefs"]
    }


def shown(cluster: EndpointCluster) -> dict[str, int]:
    return {each.name: each.weight for each in cluster.endpoint.status.revisions if each.weight}


def replicas(cluster: EndpointCluster) -> dict[str, int]:
    return {name: each["spec"]["replicas"] for name, each in cluster.deployments.items()}


def routing(cluster: EndpointCluster) -> tuple[str, str, str]:
    """Status, reason and message of the condition about the route."""
    (found,) = [each for each in cluster.endpoint.status.conditions if each.type == "RouteAccepted"]
    return found.status, found.reason, found.message


def test_an_endpoint_has_one_route_to_the_service_of_its_revision() -> None:
    cluster, revision = behind_gateway()
    (route,) = cluster.routes.values()
    assert route["metadata"]["name"] == "desk"
    assert route["metadata"]["ownerReferences"][0]["uid"] == "endpoint-uid"
    assert route["spec"] == {
        "parentRefs": [
            {
                "group": "gateway.networking.k8s.io",
                "kind": "Gateway",
                "name": "public",
                "namespace": "infra",
            }
        ],
        "hostnames": ["desk.example.com"],
        "rules": [
            {
                "matches": [{"path": {"type": "PathPrefix", "value": "/v1"}}],
                "backendRefs": [
                    {"group": "", "kind": "Service", "name": revision, "port": 80, "weight": 100}
                ],
            }
        ],
    }
    assert cluster.services[revision]["spec"]["selector"] == {
        "finetune.dev/run": "endpoint-uid",
        "finetune.dev/revision": revision,
    }
    assert cluster.points_at == revision, "for clients in the cluster"
    assert cluster.endpoint.status.url == "http://desk.example.com/v1"
    assert routing(cluster) == ("True", "RouteAccepted", "accepted by Gateway infra/public")
    reason, message = cluster.condition("Ready") or ("", "")
    assert reason == "Serving"
    assert "at http://desk.example.com/v1" in message


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"parentRefs": [{"name": "a"}], "hostnames": ["a.b.com"]}, {"parentRefs": [{"name": "a"}]}),
        ({"parentRefs": [{"name": "a", "sectionName": "http"}]}, {"parentRefs": [{"name": "a"}]}),
        ({"parentRefs": [{"name": "a", "namespace": "c"}]}, {"parentRefs": [{"name": "a"}]}),
    ],
)
def test_what_is_removed_from_the_gateway_is_removed_from_the_route(
    before: Manifest, after: Manifest
) -> None:
    cluster, _ = behind_gateway(traffic={"gateway": before})
    fresh, _ = behind_gateway(traffic={"gateway": after})
    cluster.edit(traffic={"gateway": after})
    settle(cluster)
    assert cluster.routes["desk"]["spec"] == fresh.routes["desk"]["spec"]


def test_an_endpoint_without_traffic_reads_and_writes_no_route() -> None:
    cluster, revision = serving()
    assert not cluster.routes
    assert list(cluster.services) == ["desk"]
    assert not [each for each in cluster.endpoint.status.conditions if each.type == "RouteAccepted"]
    assert cluster.reconcile().requeue_after is None
    assert cluster.endpoint.status.url == "http://desk.team.svc/v1"
    plain, routes = endpoint(), endpoint(traffic=TRAFFIC)
    assert spec_hash(plain) == spec_hash(routes), "a failed revision is not tried again for it"
    cluster.edit(traffic=TRAFFIC)
    cluster.settle()
    assert list(cluster.deployments) == [revision], "no new revision starts"


@pytest.mark.parametrize(
    ("gateway", "url"),
    [
        ({"parentRefs": [{"name": "a"}], "hostnames": ["*.b.com", "a.b.com"]}, "http://a.b.com/v1"),
        ({"parentRefs": [{"name": "a", "port": 443}], "hostnames": ["a.b.com"]}, "https://a.b.com/v1"),
        (
            {"parentRefs": [{"name": "a", "sectionName": "https"}], "hostnames": ["a.b.com"]},
            "https://a.b.com/v1",
        ),
        ({"parentRefs": [{"name": "a", "port": 8080}], "hostnames": ["a.b.com"]}, "http://a.b.com:8080/v1"),
        ({"parentRefs": [{"name": "a"}], "hostnames": ["*.b.com"]}, None),
        ({"parentRefs": [{"name": "a"}]}, None),
    ],
)
def test_the_url_is_that_of_the_first_hostname(gateway: Manifest, url: str | None) -> None:
    assert EndpointGateway.model_validate(gateway).url == url


def test_a_canary_has_its_exact_weight_and_its_replicas_in_addition() -> None:
    cluster, old, new = started()
    assert replicas(cluster) == {old: 5, new: 1}
    assert routed(cluster) == {old: 100}
    assert new in cluster.services, "its Service is there before it gets requests"
    settle(cluster)
    assert routed(cluster) == shown(cluster) == {old: 95, new: 5}
    assert replicas(cluster) == {old: 5, new: 1}
    assert cluster.endpoint.status.replicas == 6
    assert cluster.points_at == old
    cluster.wait(60)
    settle(cluster)
    assert replicas(cluster) == {old: 5, new: 3}, "half of 5, rounded up"
    assert routed(cluster) == {old: 50, new: 50}
    cluster.wait(120)
    settle(cluster)
    assert routed(cluster) == shown(cluster) == {new: 100}
    assert replicas(cluster) == {new: 5}
    assert set(cluster.services) == {"desk", new}
    assert cluster.points_at == new
    assert states(cluster)[new] == "Live"


def test_one_replica_can_have_a_canary_of_one_percent() -> None:
    cluster, old, new = started(replicas=1, canary={"steps": [{"setWeight": 1}, {"pause": {"seconds": 60}}]})
    settle(cluster)
    assert routed(cluster) == {old: 99, new: 1}
    assert replicas(cluster) == {old: 1, new: 1}


def test_a_step_ends_only_after_the_gateway_has_taken_its_weight() -> None:
    cluster, old, new = started(replicas=5, canary={"steps": [{"setWeight": 5}, {"setWeight": 10}]})
    cluster.make_ready(new)
    cluster.settle()
    assert routed(cluster) == {old: 95, new: 5}
    assert shown(cluster) == {old: 100}, "what is shown has been achieved"
    assert routing(cluster)[:2] == ("Unknown", "RoutePending")
    assert cluster.reconcile().requeue_after == 1.0
    cluster.wait(3600)
    assert cluster.reconcile().requeue_after == 30.0
    assert routed(cluster) == {old: 95, new: 5}
    accept(cluster)
    cluster.settle()
    assert shown(cluster) == {old: 95, new: 5}
    settle(cluster)
    assert routed(cluster) == {new: 100}


def test_a_pause_that_has_ended_waits_for_the_gateway_without_haste() -> None:
    cluster, old, new = begun()
    route = cluster.routes["desk"]
    accept(cluster, route["metadata"]["generation"] - 1)
    cluster.wait(60)
    cluster.settle()
    assert step(cluster, new) == 1
    assert routed(cluster) == {old: 95, new: 5}
    assert (cluster.reconcile().requeue_after or 0.0) >= 1.0


def step(cluster: EndpointCluster, name: str) -> int | None:
    (entry,) = [each for each in cluster.endpoint.status.revisions if each.name == name]
    return entry.step


def test_the_weight_is_0_and_taken_before_a_revision_and_its_service_are_deleted() -> None:
    cluster, old, new = started(type="RollingUpdate", canary=None)
    cluster.make_ready(new)
    cluster.log.clear()
    cluster.settle()
    assert routed(cluster) == {new: 100}
    assert set(cluster.deployments) == {old, new}, "the gateway may still route to it"
    accept(cluster)
    cluster.settle()
    assert set(cluster.deployments) == {new}
    assert set(cluster.services) == {"desk", new}
    writes = [entry for entry in cluster.log if not entry.startswith("event")]
    deleted = [entry for entry in writes if entry.startswith("delete")]
    assert writes.index("apply HTTPRoute desk") < writes.index(f"delete {old}")
    assert deleted == [f"delete {old}", f"delete {old}"], "the Deployment, then the Service"


def test_an_aborted_canary_gets_weight_0_at_once_and_is_deleted_when_that_is_taken() -> None:
    cluster, old, new = begun()
    cluster.edit(strategy={**CANARY, "decision": {"revision": new, "verdict": "Abort"}})
    cluster.reconcile()
    assert routed(cluster) == {old: 100}
    cluster.settle()
    assert set(cluster.deployments) == {old, new}
    assert states(cluster)[new] == "RolledBack"
    accept(cluster)
    cluster.settle()
    assert set(cluster.deployments) == {old}
    assert set(cluster.services) == {"desk", old}


def test_a_crash_in_the_bake_returns_the_requests_to_a_service_that_is_still_there() -> None:
    cluster, old, new = started(type="RollingUpdate", canary=None, bakeSeconds=600)
    settle(cluster)
    assert states(cluster) == {new: "Baking", old: "Standby"}
    assert set(cluster.services) == {"desk", old, new}
    cluster.put(crashed_pod(new, "2199-01-01T00:00:00Z"))
    cluster.reconcile()
    assert routed(cluster) == {old: 100}
    assert states(cluster)[new] == "RolledBack"


def test_a_route_that_another_client_edits_is_restored() -> None:
    cluster, old, new = begun()
    route = cluster.routes["desk"]
    edited = [{**route["spec"]["rules"][-1], "backendRefs": [{"name": "mine", "port": 80, "weight": 1}]}]
    cluster.routes["desk"] = {**route, "spec": {**route["spec"], "rules": edited}}
    cluster.settle()
    assert routed(cluster) == {old: 95, new: 5}
    del cluster.routes["desk"]
    cluster.settle()
    assert routed(cluster) == {old: 95, new: 5}


def test_an_accepted_route_is_read_twice_a_minute() -> None:
    cluster, _ = behind_gateway()
    assert cluster.reconcile().requeue_after == 30.0


@pytest.mark.parametrize(
    ("verdicts", "status", "reason", "text"),
    [
        ({"Accepted": "False"}, "False", "RouteNotAccepted", "Accepted=False, Reason: why"),
        ({"ResolvedRefs": "False"}, "False", "RouteNotAccepted", "ResolvedRefs=False, Reason: why"),
        ({"Programmed": "False"}, "False", "RouteNotAccepted", "Programmed=False, Reason: why"),
        ({"Accepted": "Unknown"}, "Unknown", "RoutePending", "has not decided"),
    ],
)
def test_a_route_that_a_gateway_does_not_accept_is_reported_and_the_endpoint_is_not_ready(
    verdicts: dict[str, str], status: str, reason: str, text: str
) -> None:
    cluster, _ = behind_gateway()
    accept(cluster, **verdicts)
    cluster.settle()
    assert routing(cluster)[:2] == (status, reason)
    assert text in routing(cluster)[2]
    assert "Gateway infra/public" in routing(cluster)[2]
    assert (cluster.condition("Reconciling") or ("",))[0] == reason
    assert cluster.condition("Ready") is None
    assert cluster.condition("Available") is not None, "clients in the cluster are served"


def test_stale_foreign_and_missing_statuses_are_told_apart() -> None:
    cluster, _ = behind_gateway()
    accept(cluster, 0)
    cluster.settle()
    status, reason, message = routing(cluster)
    assert (status, reason) == ("Unknown", "RoutePending")
    assert "has not taken generation 1" in message
    assert CONTROLLER in message

    accept(cluster)
    route = cluster.routes["desk"]
    (entry,) = route["status"]["parents"]
    other = {**entry, "controllerName": "example.com/other"}
    cluster.routes["desk"] = {**route, "status": {"parents": [entry, other]}}
    cluster.settle()
    assert routing(cluster)[:2] == ("False", "ForeignRouteStatus")
    assert "example.com/other and traefik.io" in routing(cluster)[2]

    refusing = {**entry["conditions"][0], "type": "Accepted", "status": "False"}
    again = {**entry, "conditions": [refusing]}
    cluster.routes["desk"] = {**route, "status": {"parents": [entry, again]}}
    cluster.settle()
    assert routing(cluster)[:2] == ("False", "RouteNotAccepted"), "one controller reports twice"

    former = {**other, "parentRef": {**entry["parentRef"], "name": "former"}}
    cluster.routes["desk"] = {**route, "status": {"parents": [entry, former]}}
    cluster.settle()
    assert routing(cluster)[:2] == ("True", "RouteAccepted")
    assert "Gateway infra/former, which spec.traffic does not name" in routing(cluster)[2]

    cluster.routes["desk"] = {**route, "status": {"parents": []}}
    cluster.settle()
    assert routing(cluster)[:2] == ("Unknown", "RoutePending")
    assert "has not answered" in routing(cluster)[2]


def test_each_gateway_must_accept_the_route() -> None:
    both = {"gateway": {"parentRefs": [{"name": "public", "namespace": "infra"}, {"name": "internal"}]}}
    cluster, _ = behind_gateway(traffic=both)
    assert routing(cluster)[:2] == ("Unknown", "RoutePending")
    assert "Gateway team/internal has not answered" in routing(cluster)[2]
    assert "infra/public" not in routing(cluster)[2]


@pytest.mark.parametrize(
    ("code", "reason", "advice"),
    [
        (404, "GatewayAPINotInstalled", "install it, or remove spec.traffic"),
        (403, "Forbidden", "set gatewayAPI.enabled"),
    ],
)
def test_without_the_gateway_api_or_the_right_the_service_routes(code: int, reason: str, advice: str) -> None:
    cluster = EndpointCluster(checkpoint("first", "1"), traffic=TRAFFIC)
    cluster.cluster.objects["HTTPRoute", "desk"] = refusal(code, "httproutes is forbidden")
    cluster.settle()
    (old,) = cluster.deployments
    assert list(cluster.services) == ["desk"]
    assert routing(cluster)[:2] == ("False", reason)
    assert advice in routing(cluster)[2]
    assert cluster.reconcile().requeue_after is not None
    cluster.make_ready(old)
    cluster.settle()
    assert (cluster.condition("Reconciling") or ("",))[0] == reason
    cluster.put(checkpoint("second", "2", promoted=10))
    cluster.settle()
    (new,) = set(cluster.deployments) - {old}
    cluster.make_ready(new)
    cluster.settle()
    assert cluster.points_at == new
    assert set(cluster.deployments) == {new}, "no gateway routes to the old one"


def test_a_canary_without_the_gateway_api_gets_no_requests() -> None:
    cluster, old = serving(strategy=CANARY, traffic=TRAFFIC, replicas=5)
    cluster.cluster.objects["HTTPRoute", "desk"] = refusal(404, "")
    cluster.put(checkpoint("second", "2", promoted=10))
    cluster.settle()
    (new,) = set(cluster.deployments) - {old}
    for _ in range(3):
        cluster.make_ready(new)
        cluster.wait(3600)
        cluster.settle()
    assert cluster.points_at == old
    assert shown(cluster) == {old: 100}
    assert set(cluster.deployments) == {old, new}


def test_the_route_and_then_the_services_of_revisions_are_deleted_with_the_gateway() -> None:
    cluster, old, new = begun()
    cluster.log.clear()
    cluster.edit(traffic=None)
    for name in (old, new):
        cluster.make_ready(name)
    cluster.settle()
    assert not cluster.routes
    assert list(cluster.services) == ["desk"]
    deleted = [entry for entry in cluster.log if entry.startswith("delete")]
    assert deleted[0] == "delete desk"
    assert not [each for each in cluster.endpoint.status.conditions if each.type == "RouteAccepted"]


def test_a_route_that_the_operator_may_not_delete_keeps_its_services_until_it_is_gone() -> None:
    cluster, old, new = begun()
    route = cluster.routes["desk"]
    cluster.cluster.objects["HTTPRoute", "desk"] = refusal(403, "httproutes is forbidden")
    cluster.edit(traffic=None, strategy={})
    for _ in range(3):
        for name in (old, new):
            cluster.make_ready(name)
        cluster.settle()

    assert {"desk", old, new} <= set(cluster.services)
    assert set(cluster.deployments) == {old, new}, "the route may still split requests between them"
    assert cluster.points_at == new
    assert routing(cluster)[:2] == ("False", "Forbidden")
    assert "set gatewayAPI.enabled in the operator's chart until it is deleted" in routing(cluster)[2]
    assert (cluster.condition("Reconciling") or ("",))[0] == "Forbidden"
    assert cluster.reconcile().requeue_after is not None

    cluster.cluster.objects["HTTPRoute", "desk"] = route
    cluster.settle()
    assert not cluster.routes
    assert list(cluster.services) == ["desk"]
    assert set(cluster.deployments) == {new}
    assert not [each for each in cluster.endpoint.status.conditions if each.type == "RouteAccepted"]


def test_the_services_of_revisions_that_a_person_deletes_end_the_wait_for_a_hidden_route() -> None:
    cluster, old, new = begun()
    cluster.cluster.objects["HTTPRoute", "desk"] = refusal(403, "httproutes is forbidden")
    cluster.edit(traffic=None, strategy={})
    for _ in range(3):
        for name in (old, new):
            cluster.make_ready(name)
        cluster.settle()
    for name in (old, new):
        del cluster.services[name]
    cluster.settle()

    assert list(cluster.services) == ["desk"]
    assert set(cluster.deployments) == {new}
    assert (cluster.condition("Ready") or ("",))[0] == "Serving"


@pytest.mark.parametrize("manager", ["kubectl", "finetune-operator"])
@pytest.mark.parametrize("place", ["rule", "match", "backend"])
def test_a_field_that_another_client_adds_to_the_rules_is_removed(place: str, manager: str) -> None:
    cluster, revision = behind_gateway()
    written = cluster.routes["desk"]["spec"]
    (rule,) = written["rules"]
    headers = {"filters": [{"type": "RequestHeaderModifier"}]}
    changed = {
        "rule": rule | headers,
        "match": rule | {"matches": [{**rule["matches"][0], "method": "GET"}]},
        "backend": rule | {"backendRefs": [{**rule["backendRefs"][0], **headers}]},
    }[place]
    route = cluster.routes["desk"]
    cluster.routes["desk"] = {
        **route,
        "metadata": {**route["metadata"], "managedFields": [applied_by(manager, written)]},
        "spec": {**written, "rules": [changed]},
    }
    cluster.settle()
    assert cluster.routes["desk"]["spec"] == written
    assert routed(cluster) == {revision: 100}


def applied_by(manager: str, spec: Manifest, operation: str = "Apply") -> Manifest:
    """The entry of `managedFields` of a manager that applied all fields."""
    fields: Manifest = {"f:spec": {f"f:{field}": {} for field in spec}}
    return {"manager": manager, "operation": operation, "fieldsType": "FieldsV1", "fieldsV1": fields}


def with_a_default(cluster: EndpointCluster, manager: str, operation: str) -> list[str]:
    """Give each rule a field that the operator does not know, and return the writes of the next passes."""
    route = cluster.routes["desk"]
    rules = [{**rule, "mirroring": "Off"} for rule in route["spec"]["rules"]]
    entry = applied_by(manager, route["spec"], operation)
    cluster.routes["desk"] = {
        **route,
        "metadata": {**route["metadata"], "managedFields": [entry]},
        "spec": {**route["spec"], "rules": rules},
    }
    before = len(cluster.log)
    settle(cluster)
    return cluster.log[before:]


def test_a_default_of_a_newer_gateway_api_holds_up_no_rollout() -> None:
    cluster, old, _ = begun()
    assert with_a_default(cluster, "finetune-operator", "Apply") == []
    assert routing(cluster)[:2] == ("True", "RouteAccepted")
    assert routed(cluster)[old] == 95


@pytest.mark.parametrize(("manager", "operation"), [("kubectl", "Apply"), ("finetune-operator", "Update")])
def test_an_unknown_field_that_another_client_or_a_webhook_adds_is_removed(
    manager: str, operation: str
) -> None:
    cluster, _ = behind_gateway()
    written = cluster.routes["desk"]["spec"]
    assert with_a_default(cluster, manager, operation) == ["apply HTTPRoute desk"]
    assert cluster.routes["desk"]["spec"] == written


def test_behind_a_gateway_replicas_are_not_replaced_one_by_one() -> None:
    cluster, old = behind_gateway(strategy={"rollingUpdate": {"maxSurge": 1}}, replicas=3)
    cluster.put(checkpoint("second", "2", promoted=10))
    cluster.settle()
    assert {each["spec"]["replicas"] for each in cluster.deployments.values()} == {3}
    assert routed(cluster) == {old: 100}
