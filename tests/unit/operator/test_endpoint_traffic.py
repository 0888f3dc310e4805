# SPDX-License-Identifier: Apache-2.0
"""Routing of an endpoint's requests by the Service, and the weights in the status."""

import pytest

from finetune_operator.engine.resources import SERVICE
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.inferencedeployment.traffic import (
    ServiceTraffic,
    Writes,
    main_revision,
    traffic_of,
)
from tests.unit.operator.endpoints import EndpointCluster, checkpoint


def service(revision: str | None) -> Manifest:
    selector = {"finetune.dev/run": "endpoint-uid"}
    if revision is not None:
        selector["finetune.dev/revision"] = revision
    return {"kind": "Service", "metadata": {"name": "desk", "uid": "uid"}, "spec": {"selector": selector}}


def traffic(
    selects: str | None = None, served: str = "", *, has_service: bool = True, deployments: str = "one two"
) -> ServiceTraffic:
    cluster = EndpointCluster(status={"revision": served})
    if has_service:
        cluster.put_child(service(selects))
    for name in deployments.split():
        cluster.put_child({"kind": "Deployment", "metadata": {"name": name}})
    return ServiceTraffic(cluster.endpoint, cluster.snapshot())


@pytest.mark.parametrize(
    ("routing", "weights"),
    [
        (traffic(has_service=False), {}),
        (traffic(None), {}),
        (traffic("one"), {"one": 100}),
        (traffic("two", served="one"), {"two": 100}),
        (traffic("gone", served="one"), {"one": 100}),
        (traffic(None, served="one"), {"one": 100}),
        (traffic(served="one", has_service=False), {"one": 100}),
        (traffic("gone", served="gone too"), {"gone": 100}),
        (traffic(served="one", has_service=False, deployments=""), {}),
    ],
)
def test_what_the_service_selects_gets_all_requests_or_what_served_before(
    routing: ServiceTraffic, weights: dict[str, int]
) -> None:
    assert routing.weights() == weights


def test_routing_writes_only_what_is_not_routed_so_already() -> None:
    made = traffic(has_service=False).route({"one": 100})
    assert [each.manifest["spec"]["selector"]["finetune.dev/revision"] for each in made.create] == ["one"]
    assert made.apply == ()
    moved = traffic("one").route({"two": 100})
    assert [each.manifest["metadata"]["uid"] for each in moved.apply] == ["uid"]
    assert moved.create == ()
    assert traffic("one").route({"one": 100}) == Writes()


@pytest.mark.parametrize("weights", [{}, {"one": 90}, {"one": 90, "two": 20}])
def test_weights_that_are_not_all_requests_are_refused(weights: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="not 100 together"):
        traffic("one").route(weights)


def split(service: Manifest) -> ServiceTraffic:
    """The routing by this Service of an endpoint with two revisions, of which `one` serves."""
    cluster = EndpointCluster(status={"revision": "one"})
    metadata = {**service["metadata"], "name": "desk", "uid": "uid"}
    cluster.put_child({**service, "metadata": metadata})
    for name in ("one", "two"):
        cluster.put_child({"kind": "Deployment", "metadata": {"name": name}})
    return ServiceTraffic(cluster.endpoint, cluster.snapshot())


def test_split_requests_are_read_back_as_they_were_routed() -> None:
    weights = {"one": 80, "two": 20}
    (made,) = traffic("one").route(weights).apply
    assert "finetune.dev/revision" not in made.manifest["spec"]["selector"]
    routing = split(made.manifest)
    assert routing.weights() == weights
    assert routing.route(weights) == Writes()
    (back,) = routing.route({"one": 100}).apply
    assert back.manifest["spec"]["selector"]["finetune.dev/revision"] == "one"
    assert "annotations" not in back.manifest["metadata"]


def test_a_service_that_also_selects_by_another_label_is_restored() -> None:
    routing = traffic("one", served="one")
    routing.snapshot.children[SERVICE]["desk"]["spec"]["selector"]["tier"] = "gold"
    assert routing.weights() == {"one": 100}
    (restored,) = routing.route({"one": 100}).apply
    assert "tier" not in restored.manifest["spec"]["selector"]


@pytest.mark.parametrize("damage", ["annotation", "sum", "sign", "selector", "revision", "third"])
def test_a_damaged_split_is_read_as_all_requests_for_what_served(damage: str) -> None:
    (made,) = traffic("one").route({"one": 80, "two" if damage != "revision" else "gone": 20}).apply
    service = made.manifest
    if damage == "annotation":
        service["metadata"]["annotations"] = {"finetune.dev/weights": "{"}
    if damage == "sum":
        service["metadata"]["annotations"] = {"finetune.dev/weights": '{"one": 50, "two": 20}'}
    if damage == "third":
        service["metadata"]["annotations"] = {"finetune.dev/weights": '{"one": 50, "two": 30, "gone": 20}'}
    if damage == "sign":
        service["metadata"]["annotations"] = {"finetune.dev/weights": '{"one": 110, "two": -10}'}
    if damage == "selector":
        service["spec"]["selector"] = {"app": "mine"}
    assert split(service).weights() == {"one": 100}


def test_the_main_revision_has_most_of_the_requests() -> None:
    assert main_revision({}) == ""
    assert main_revision({"canary": 10, "stable": 90}) == "stable"
    assert main_revision({"canary": 60, "stable": 40}, "stable") == "stable"
    assert main_revision({"canary": 100}, "stable") == "canary"


def test_an_endpoint_is_routed_by_its_service() -> None:
    cluster = EndpointCluster()
    assert isinstance(traffic_of(cluster.endpoint, cluster.snapshot()), ServiceTraffic)


def weights(cluster: EndpointCluster) -> dict[str, int | None]:
    return {revision.name: revision.weight for revision in cluster.endpoint.status.revisions}


def test_the_status_shows_the_weights_through_a_whole_rollout() -> None:
    cluster = EndpointCluster(checkpoint("first", "1"))
    cluster.reconcile()
    (old,) = cluster.deployments
    assert weights(cluster) == {old: 100}, "nobody else can answer while the first one starts"
    cluster.make_ready(old)
    cluster.settle()
    cluster.put(checkpoint("second", "2", promoted=10))
    cluster.settle()
    (new,) = set(cluster.deployments) - {old}
    assert weights(cluster) == {new: 0, old: 100}
    cluster.make_ready(new)
    cluster.reconcile()
    assert weights(cluster) == {new: 100, old: 0}
    cluster.settle()
    assert weights(cluster) == {new: 100, old: 0}
    assert all(revision.step is None for revision in cluster.endpoint.status.revisions)
