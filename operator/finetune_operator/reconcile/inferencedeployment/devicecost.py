# SPDX-License-Identifier: Apache-2.0
"""Devices that an endpoint holds, and their price per hour."""

from collections import Counter

from finetune_operator.api.inference_deployment import EndpointCost, InferenceDeployment
from finetune_operator.engine.resources import POD
from finetune_operator.manifests.labels import PROFILE
from finetune_operator.observe.device_usage import HELD, device_state, devices_per_pod
from finetune_operator.observe.pod_status import Price
from finetune_operator.reconcile.inputs.snapshot import Snapshot


def endpoint_cost(endpoint: InferenceDeployment, snapshot: Snapshot) -> EndpointCost:
    """The devices of the pods of all revisions, ready or not, and their price by their ComputeProfiles."""
    held: Counter[str | None] = Counter()
    for pod in snapshot.children[POD].values():
        if device_state(pod) in HELD:
            held[pod["metadata"].get("labels", {}).get(PROFILE)] += devices_per_pod(pod)
    names = (*held, _own_profile(endpoint, snapshot))
    prices = {name: Price.of(snapshot.profiles.get(name or "")) for name in names}
    priced = {profile: price for profile, price in prices.items() if price.per_device_hour is not None}
    currencies = {price.currency for price in priced.values()}
    if len(currencies) != 1:
        return EndpointCost(devices=held.total())
    amount = sum(held[profile] * (price.per_device_hour or 0) for profile, price in priced.items())
    return EndpointCost(devices=held.total(), amount_per_hour=round(amount, 6), currency=currencies.pop())


def _own_profile(endpoint: InferenceDeployment, snapshot: Snapshot) -> str | None:
    """The profile of the next pods, so that an endpoint without pods has the price 0."""
    default = next((name for name, profile in snapshot.profiles.items() if profile.is_default), None)
    return endpoint.spec.compute.profile or default
