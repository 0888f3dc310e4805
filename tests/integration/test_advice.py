# SPDX-License-Identifier: Apache-2.0
"""Advice to use a smaller ComputeProfile, on a real API server."""

from typing import Any

import pytest

from tests.integration import manifests
from tests.integration.api import Api, Object
from tests.integration.chain import until_condition
from tests.integration.manifests import profile_name
from tests.integration.operators import Operators

GPU = {"resource": "nvidia.com/gpu", "maxPerPod": 8}


def offer(name: str, product: str, price: float, **spec: Any) -> Object:
    device = {"accelerator": {**GPU, "product": product}}
    return manifests.of(
        "ComputeProfile",
        "",
        name,
        {**device, "cost": {"pricePerDeviceHour": price, "currency": "EUR"}, **spec},
    )


@pytest.mark.usefixtures("kubelet")
def test_a_run_names_the_cheaper_profile_that_its_namespace_may_use(
    api: Api, namespace: str, operators: Operators
) -> None:
    """The fake training used 30 GiB of 80."""
    operator = operators.start().wait_active()
    small, foreign = f"small-{namespace}", f"foreign-{namespace}"
    mine = {"accelerator": {**GPU, "product": "NVIDIA-H100-80GB-HBM3"}}
    api.patch(
        "ComputeProfile",
        "",
        profile_name(namespace),
        {"spec": {**mine, "cost": {"pricePerDeviceHour": 3, "currency": "EUR"}}},
    )
    # An L40S takes 2.7 times as long; 0.9 × 2.7 is less than 3.
    api.create(offer(small, "NVIDIA-L40S", 0.9))
    api.create(offer(foreign, "NVIDIA-L40S", 0.1, namespaces={"names": ["another-team"]}))
    api.create(manifests.dataset(namespace))
    api.create(manifests.finetunejob(namespace))
    job = until_condition(api, (namespace, "FineTuneJob", "routing"), "Ready", operator)
    (advice,) = job["status"]["advice"]
    assert (advice["reason"], advice["profile"]) == ("SmallerProfile", small)
    assert advice["message"] == (
        f"this run used at most 30 of 80 GiB per device: ComputeProfile {small} (45 GiB, EUR 0.90 instead of"
        " EUR 3.00 per device hour) is large enough; by the peaks of the devices, training takes about 2.7"
        " times as long, at 82% of the cost"
    )
    (event,) = [each for each in api.list("Event", namespace) if each["reason"] == "ProfileAdvice"]
    assert (event["type"], event["message"]) == ("Normal", advice["message"])

    api.patch("ComputeProfile", "", small, {"spec": {"namespaces": {"names": ["another-team"]}}})
    api.create(manifests.finetunejob(namespace, "routing-v2"))
    job = until_condition(api, (namespace, "FineTuneJob", "routing-v2"), "Ready", operator)
    assert "advice" not in job["status"]
