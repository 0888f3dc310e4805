# SPDX-License-Identifier: Apache-2.0
"""Devices and price per hour of an endpoint in its status."""

import pytest

from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.api.inference_deployment import EndpointCost
from finetune_operator.api.labels import PROFILE
from finetune_operator.manifests.labels import DEVICES
from finetune_operator.plan import Manifest
from tests.unit.operator.endpoints import EndpointCluster, profile, rolling, serving, serving_pod

READY = {"conditions": [{"type": "Ready", "status": "True"}]}


def offer(name: str, price: float | None, currency: str | None = "EUR") -> ComputeProfile:
    return ComputeProfile.model_validate(
        {
            "kind": "ComputeProfile",
            "metadata": {"name": name},
            "spec": {"cost": {"pricePerDeviceHour": price, "currency": currency}},
        }
    )


def pod(
    revision: str,
    name: str,
    status: Manifest = READY,
    *,
    profile: str = "standard",
    devices: int | None = 2,
) -> Manifest:
    made = serving_pod(revision, name, **status)
    made["metadata"]["labels"][PROFILE] = profile
    if devices is not None:
        made["metadata"]["labels"][DEVICES] = str(devices)
    return made


def cost(cluster: EndpointCluster) -> EndpointCost | None:
    cluster.settle()
    return cluster.endpoint.status.cost


def test_pods_of_all_revisions_count_from_their_node_to_their_end() -> None:
    cluster, old, new = rolling(compute={"devices": 2})
    cluster.put(profile(cost={"pricePerDeviceHour": 2.5, "currency": "EUR"}))
    assert cost(cluster) == EndpointCost(devices=0, amount_per_hour=0, currency="EUR")

    waiting = pod(new, "waiting", {})
    del waiting["spec"]["nodeName"]
    leaving = pod(old, "leaving")
    leaving["metadata"]["deletionTimestamp"] = "2030-01-02T03:04:05Z"
    cluster.put(
        pod(old, "serves"),
        pod(new, "loads", {}),
        waiting,
        leaving,
        pod(old, "evicted", {"phase": "Failed"}),
    )
    assert cost(cluster) == EndpointCost(devices=6, amount_per_hour=15, currency="EUR")
    display = cluster.endpoint.status.display
    assert display is not None
    assert display.cost_per_hour == "EUR 15.00"


def test_a_figure_that_stays_is_not_written_again() -> None:
    cluster, revision = serving(compute={"devices": 2})
    cluster.put(profile(cost={"pricePerDeviceHour": 2.5, "currency": "EUR"}), pod(revision, "serves"))
    cluster.settle()
    writes = cluster.cluster.writes
    cluster.wait(3600)
    cluster.reconcile()
    assert cluster.cluster.writes == writes


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (offer("other", 1.0), EndpointCost(devices=4, amount_per_hour=7, currency="EUR")),
        (offer("other", None), EndpointCost(devices=4, amount_per_hour=5, currency="EUR")),
        (offer("other", 1.0, "USD"), EndpointCost(devices=4)),
    ],
    ids=["same currency", "no price", "another currency"],
)
def test_each_pod_has_the_price_of_its_own_profile(other: ComputeProfile, expected: EndpointCost) -> None:
    cluster, revision = serving(compute={"devices": 2})
    cluster.put(profile(cost={"pricePerDeviceHour": 2.5, "currency": "EUR"}), other)
    cluster.put(pod(revision, "a"), pod(revision, "b", profile="other"))
    assert cost(cluster) == expected


def test_pods_of_a_revision_carry_the_number_of_their_devices() -> None:
    cluster, revision = serving(compute={"devices": 4})
    template = cluster.deployments[revision]["spec"]["template"]
    assert template["metadata"]["labels"][DEVICES] == "4"
