# SPDX-License-Identifier: Apache-2.0
"""Choose a ComputeProfile with less memory for runs that do not use the memory of theirs."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.reconcile.platform.devicefacts import device_facts

PEAK_SHARE: Final = 0.9
"""Share of a device's memory that the peak of training may take, as in the verdict Fits of a prediction."""


@dataclass(frozen=True, slots=True)
class Offer:
    """The devices of a ComputeProfile, as far as a choice between profiles depends on them."""

    name: str
    memory_bytes: int
    peak_teraflops: float | None = None
    price: float | None = None
    """Per device hour."""
    currency: str | None = None
    max_run_seconds: int | None = None

    @classmethod
    def of(cls, profile: ComputeProfile) -> "Offer | None":
        """The offer of a profile; None if the memory of its devices is unknown."""
        facts = device_facts(profile)
        if facts is None or facts.memory_bytes is None:
            return None
        return cls(
            name=profile.name,
            memory_bytes=facts.memory_bytes,
            peak_teraflops=facts.peak_teraflops,
            price=profile.spec.cost.price_per_device_hour,
            currency=profile.spec.cost.currency,
            max_run_seconds=profile.spec.limits.run_seconds,
        )

    def slowdown(self, current: "Offer") -> float | None:
        """How many times as long training takes as on `current`, at the same utilization; None if unknown."""
        if self.peak_teraflops is None or current.peak_teraflops is None:
            return None
        return current.peak_teraflops / self.peak_teraflops

    def cost_ratio(self, current: "Offer") -> float | None:
        """The cost of a run divided by that on `current`; None without comparable prices.

        Where the peaks of the devices are unknown, a device hour counts as equal work.
        """
        if self.price is None or not current.price or self.currency != current.currency:
            return None
        return self.price / current.price * (self.slowdown(current) or 1)


def smaller_offer(
    current: Offer, offers: Iterable[Offer], required_bytes: float, seconds: float
) -> Offer | None:
    """The cheapest of the offers that are large enough and cheaper than the current one, or None.

    If neither has a price, the one with the least memory that is less than that of the current one.

    Args:
        current: the offer that the run used.
        offers: those of the remaining profiles.
        required_bytes: memory that a device needs.
        seconds: seconds of the train stage with the current offer.
    """
    suitable = [
        offer
        for offer in offers
        if required_bytes <= offer.memory_bytes <= current.memory_bytes
        and _is_better(offer, current)
        and seconds * (offer.slowdown(current) or 1) <= (offer.max_run_seconds or float("inf"))
    ]
    return min(
        suitable,
        key=lambda offer: (offer.cost_ratio(current) or 0, offer.memory_bytes, offer.name),
        default=None,
    )


def _is_better(offer: Offer, current: Offer) -> bool:
    ratio = offer.cost_ratio(current)
    if ratio is not None:
        return ratio < 1
    return offer.price is None and current.price is None and offer.memory_bytes < current.memory_bytes
