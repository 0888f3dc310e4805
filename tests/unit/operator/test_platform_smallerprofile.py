# SPDX-License-Identifier: Apache-2.0
"""The choice of a ComputeProfile with less memory."""

from typing import Any

import pytest

from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.reconcile.finetunejob.prediction import Offer, smaller_offer

GIB = 1 << 30


def offer(name: str, gib: int, price: float | None = None, **fields: Any) -> Offer:
    return Offer(name, gib * GIB, price=price, currency="EUR" if price is not None else None, **fields)


H100 = offer("h100", 80, 2.9, peak_teraflops=989)


@pytest.mark.parametrize(
    ("current", "offers", "chosen"),
    [
        (H100, [offer("small", 24, 0.6)], "small"),
        (H100, [offer("tiny", 10, 0.1), offer("small", 24, 0.6), offer("medium", 40, 1.5)], "small"),
        (H100, [offer("larger", 141, 0.5)], None),
        (H100, [offer("dear", 40, 2.9)], None),
        (H100, [offer("free", 40)], None),
        (H100, [Offer("dollars", 40 * GIB, price=0.5, currency="USD")], None),
        (offer("unpriced", 80), [offer("priced", 40, 0.5)], None),
        (offer("unpriced", 80), [offer("a", 40), offer("b", 24), offer("c", 80)], "b"),
        (offer("unpriced", 80), [offer("same", 80)], None),
        (offer("paid", 80, 0.0), [offer("also", 40, 0.0)], None),
    ],
    ids=[
        "cheaper and large enough",
        "the cheapest of those that are large enough",
        "more memory",
        "not cheaper",
        "price unknown",
        "another currency",
        "own price unknown",
        "no prices: the least memory",
        "no prices: the same memory",
        "nothing is cheaper than nothing",
    ],
)
def test_the_cheapest_offer_that_is_large_enough_is_chosen(
    current: Offer, offers: list[Offer], chosen: str | None
) -> None:
    found = smaller_offer(current, offers, required_bytes=20 * GIB, seconds=3600)
    assert (found.name if found else None) == chosen


@pytest.mark.parametrize(("price", "chosen"), [(0.3, "l4"), (0.6, None)])
def test_a_device_hour_of_a_slower_device_is_worth_less(price: float, chosen: str | None) -> None:
    """An L4 takes 8.2 times as long, so it saves nothing above 2.9 / 8.2 = 0.35 per hour."""
    found = smaller_offer(H100, [offer("l4", 22, price, peak_teraflops=121)], 10 * GIB, 3600)
    assert (found.name if found else None) == chosen


@pytest.mark.parametrize(("limit", "chosen"), [(29_600, "l4"), (29_400, None)])
def test_a_slower_device_must_finish_within_the_limit_of_its_profile(limit: int, chosen: str | None) -> None:
    slow = offer("l4", 22, 0.1, peak_teraflops=121, max_run_seconds=limit)
    found = smaller_offer(H100, [slow], 10 * GIB, 3600)
    assert (found.name if found else None) == chosen


def test_a_profile_offers_what_is_known_about_its_devices() -> None:
    def of(**spec: Any) -> Offer | None:
        metadata = {"name": "a"}
        return Offer.of(
            ComputeProfile.model_validate({"kind": "ComputeProfile", "metadata": metadata, "spec": spec})
        )

    gpu, price = {"resource": "nvidia.com/gpu"}, {"pricePerDeviceHour": 1, "currency": "EUR"}
    assert of(accelerator={**gpu, "product": "NVIDIA-L4"}, cost=price) == Offer("a", 22 * GIB, 121, 1, "EUR")
    assert of(accelerator=gpu) is None
    assert of(accelerator={"resource": "cpu"}) is None
