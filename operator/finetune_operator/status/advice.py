# SPDX-License-Identifier: Apache-2.0
"""Texts of the advice in `status.advice`."""

from typing import Final

from finetune_trainer.contract.prediction import gibibytes

NOTABLE: Final = 1.05
"""Ratio of durations from which a message mentions the longer one."""


def smaller_profile_message(
    *,
    runs: int,
    peak_bytes: int,
    memory_bytes: tuple[int, int],
    profile: str,
    prices: tuple[float | None, float | None],
    currency: str | None,
    slowdown: float | None,
) -> str:
    """The advice to use another profile.

    Args:
        runs: number of runs that were measured.
        peak_bytes: their highest peak.
        memory_bytes: memory of a device now, and with the profile.
        profile: the ComputeProfile to use.
        prices: prices per device hour now, and with the profile.
        currency: their currency.
        slowdown: how many times as long training takes; None if it is unknown.
    """
    whose = "this run" if runs == 1 else f"the last {runs} runs of this model line with this profile"
    (now, then), (price_now, price_then) = memory_bytes, prices
    details = f"{gibibytes(then)} GiB"
    if price_now is not None and price_then is not None:
        unit = f"{currency} " if currency else ""
        details += f", {unit}{price_then:.2f} instead of {unit}{price_now:.2f} per device hour"
    return (
        f"{whose} used at most {gibibytes(peak_bytes)} of {gibibytes(now)} GiB per device: ComputeProfile"
        f" {profile} ({details}) is large enough{_duration(slowdown, price_now, price_then)}"
    )


def _duration(slowdown: float | None, price_now: float | None, price_then: float | None) -> str:
    if slowdown is None or slowdown < NOTABLE:
        return ""
    text = f"; by the peaks of the devices, training takes about {slowdown:.1f} times as long"
    if not price_now or price_then is None:
        return text
    return f"{text}, at {price_then / price_now * slowdown:.0%} of the cost"
