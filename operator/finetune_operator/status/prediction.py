# SPDX-License-Identifier: Apache-2.0
"""The prediction of a run and what it took: in its status, in messages and in columns, and as advice.

The columns are those of `kubectl get -o wide`. The advice is in `status.advice`, for later runs.
"""

from dataclasses import dataclass
from typing import Final, get_args

from finetune_operator.api.finetune_job_status import MeasuredTraining, Prediction, TrainingStatus
from finetune_operator.api.stage_status import StageStatus
from finetune_operator.api.training import ResolvedHyperparameters
from finetune_operator.status.conditions import shorten
from finetune_trainer.contract.accelerators import DeviceFacts, find_card, gibibytes
from finetune_trainer.contract.prediction import MAX_CHOSEN, PredictionFields, Verdict
from finetune_trainer.contract.prediction import Prediction as Predicted

MAX_SENTENCE_LENGTH: Final = 256
TERA: Final = 1e12


@dataclass(frozen=True, slots=True)
class TrainDevices:
    """The devices of a run's train stage."""

    count: int
    """Devices of all pods together."""
    facts: DeviceFacts | None
    price_per_hour: float | None = None
    currency: str | None = None


def predicted_status(predicted: Predicted, devices: TrainDevices) -> Prediction:
    """The prediction of preflight, with the cost of these devices."""
    low, high = predicted.seconds_low, predicted.seconds_high
    # The API server would refuse a value of a newer trainer.
    verdict: Verdict = predicted.verdict if predicted.verdict in get_args(Verdict) else "Unknown"
    facts = devices.facts or DeviceFacts()
    return Prediction(
        **predicted.model_dump(include=set(PredictionFields.model_fields) - {"verdict"}),
        verdict=verdict,
        device=facts.product,
        peak_teraflops=facts.peak_teraflops,
        seconds_low=None if low is None else round(low),
        seconds_high=None if high is None else round(high),
        cost_low=_cost(low, devices),
        cost_high=_cost(high, devices),
        currency=devices.currency if devices.price_per_hour is not None else None,
        mfu=predicted.mfu,
        mfu_assumed=predicted.mfu_assumed,
        chosen=tuple(shorten(text, MAX_SENTENCE_LENGTH) for text in predicted.chosen[:MAX_CHOSEN]),
    )


def add_measurements(
    prediction: Prediction,
    training: TrainingStatus,
    planned: ResolvedHyperparameters,
    stage: StageStatus | None,
    devices: TrainDevices,
) -> Prediction:
    """The prediction with what training took.

    The operations of the steps made are compared with what the devices could compute while they trained. The
    start of pods is not part of it: it depends on the store and the model, and not on the number of steps.
    """
    seconds = training.tokens / training.tokens_per_second if training.tokens_per_second else None
    made = training.steps / planned.total_steps if planned.total_steps else 0
    peak = prediction.peak_teraflops
    mfu = None
    if seconds and peak is not None:
        share = prediction.flops * made / (seconds * devices.count * peak * TERA)
        mfu = float(f"{share:.4g}") if 0 < share <= 1 else None
    cost = None
    if stage is not None and stage.device_seconds and devices.price_per_hour is not None:
        cost = round(stage.device_seconds / 3600 * devices.price_per_hour, 2)
    curve = training.learning_curve
    measured = MeasuredTraining(
        device_memory_bytes=training.device_memory_bytes,
        seconds=None if seconds is None else round(seconds + (curve.seconds if curve else 0), 1),
        cost=cost,
        mfu=mfu,
    )
    return prediction.model_copy(update={"measured": measured})


def predicted_message(prediction: Prediction, count: int) -> str:
    """Duration, devices, memory and cost: `about 2 h 10 min on one H100, 31 of 80 GiB, EUR 6.50`.

    Args:
        count: number of devices of all pods together.
    """
    duration = _range_text(prediction.seconds_low, prediction.seconds_high)
    where = f"on {_devices_text(prediction.device, count)}"
    cost = _cost_text(prediction.cost_low, prediction.cost_high, prediction.currency)
    parts = [
        f"about {duration} {where}" if duration else where,
        f"{_memory_text(prediction)} per device" if count > 1 else _memory_text(prediction),
        *([cost] if cost else []),
    ]
    if duration and prediction.mfu_assumed and prediction.mfu is not None:
        parts.append(f"at an assumed {prediction.mfu:.0%} of the device's peak")
    return ", ".join(parts)


def measured_message(prediction: Prediction) -> str:
    """What training took, compared with the prediction; empty if nothing was measured."""
    took = _columns_text(*_measured(prediction))
    return f"; took {took}, predicted {predicted_column(prediction)}" if took else ""


def columns(prediction: Prediction | None) -> dict[str, str | None]:
    """Fields of `JobDisplay` for the columns PREDICTED and TOOK."""
    if prediction is None:
        return {}
    return {"predicted": predicted_column(prediction), "took": took_column(prediction)}


def predicted_column(prediction: Prediction) -> str:
    """Column of the predicted figures."""
    return _columns_text(
        _range_text(prediction.seconds_low, prediction.seconds_high),
        _memory_text(prediction),
        _cost_text(prediction.cost_low, prediction.cost_high, prediction.currency),
    )


def took_column(prediction: Prediction) -> str | None:
    """Column of the measured figures."""
    return _columns_text(*_measured(prediction)) or None


def find_warning(prediction: Prediction) -> str | None:
    """What a user should know before training begins; None if there is nothing."""
    if prediction.verdict not in ("Tight", "TooLarge"):
        return None
    chance = "may not fit" if prediction.verdict == "Tight" else "will probably not fit"
    return (
        f"training {chance}: predicted peak of {_memory_text(prediction)} per device. If it does not fit, it"
        " continues with smaller batches or gradient checkpointing where the run allows them. To be safe, use"
        " a smaller maxSequenceLength, QLoRA, or a ComputeProfile with more memory"
    )


def _measured(prediction: Prediction) -> tuple[str, str, str]:
    measured = prediction.measured
    if measured is None:
        return "", "", ""
    seconds = None if measured.seconds is None else round(measured.seconds)
    memory = "" if measured.device_memory_bytes is None else gibibytes(measured.device_memory_bytes)
    cost = _cost_text(measured.cost, measured.cost, prediction.currency)
    return _range_text(seconds, seconds), f"{memory} GiB" if memory else "", cost


def _columns_text(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _cost(seconds: float | None, devices: TrainDevices) -> float | None:
    if seconds is None or devices.price_per_hour is None:
        return None
    return round(seconds / 3600 * devices.count * devices.price_per_hour, 2)


def _cost_text(low: float | None, high: float | None, currency: str | None) -> str:
    if low is None or high is None:
        return ""
    amount = f"{low:.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f} to {high:.2f}"
    return f"{currency} {amount}" if currency else amount


def _memory_text(prediction: Prediction) -> str:
    used, available = prediction.device_memory_bytes, prediction.device_memory_available_bytes
    return f"{gibibytes(used)} of {gibibytes(available)} GiB" if available else f"{gibibytes(used)} GiB"


def _devices_text(product: str | None, count: int) -> str:
    card = find_card(product)
    name = card.name if card is not None else product
    if count == 1:
        return f"one {name or 'device'}"
    return f"{count} {name}" if name else f"{count} devices"


def _range_text(low: int | None, high: int | None) -> str:
    """A duration, or two: `2 h 10 min to 3 h`."""
    if low is None or high is None:
        return ""
    shorter, longer = _long_duration(low), _long_duration(high)
    return shorter if shorter == longer else f"{shorter} to {longer}"


def _long_duration(seconds: int) -> str:
    """At least `1 s`; `12 min`, `2 h 10 min`, `3 d 4 h`: hours and days with their next smaller unit."""
    if seconds < 60:
        return f"{max(1, seconds)} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    big, small, names = (
        (*divmod(minutes, 60), ("h", "min"))
        if minutes < 48 * 60
        else (*divmod(round(minutes / 60), 24), ("d", "h"))
    )
    return f"{big} {names[0]} {small} {names[1]}" if small else f"{big} {names[0]}"


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
