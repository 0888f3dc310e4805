# SPDX-License-Identifier: Apache-2.0
"""The prediction of what a run needs: its record, the comparison with the measured training, and advice.

Preflight predicts. Advice is for later runs, from what this run and those before it measured: a cheaper
ComputeProfile with less memory, if the runs do not use the memory of theirs.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.api.finetune_job_status import Advice, TrainingStatus
from finetune_operator.api.references import StoreReference
from finetune_operator.api.stage_status import StageStatus
from finetune_operator.api.training import ResolvedHyperparameters
from finetune_operator.manifests.pod_sizing import WEIGHTS_SHARE, one_device_holds
from finetune_operator.reconcile.finetunejob.run import RunPass
from finetune_operator.reconcile.inputs.device_use import MAX_LINE_RUNS, LineOnProfile
from finetune_operator.reconcile.platform.profiles import (
    check_devices,
    check_nodes,
    device_facts,
    is_allowed,
    resolve_store,
)
from finetune_operator.reconcile.platform.queues import check_choice
from finetune_operator.status.conditions import shorten
from finetune_operator.status.prediction import (
    TrainDevices,
    add_measurements,
    find_warning,
    measured_message,
    predicted_message,
    predicted_status,
    smaller_profile_message,
)
from finetune_operator.status.reasons import EventReason
from finetune_trainer.contract.prediction import Prediction


def record_prediction(run: RunPass, predicted: Prediction | None) -> str:
    """Take the prediction into the status; return what `Preflighted` says about it, or an empty text."""
    if predicted is None:
        return ""
    devices = _train_devices(run)
    prediction = predicted_status(predicted, devices)
    run.update(prediction=prediction)
    warning = find_warning(prediction)
    if warning is not None:
        run.draft.event(EventReason.PREDICTED_TIGHT, warning, "Warning")
    chosen = "".join(f"; {sentence}" for sentence in prediction.chosen)
    return f"; predicted: {predicted_message(prediction, devices.count)}{chosen}"


def record_measured(
    run: RunPass, times: StageStatus | None, training: TrainingStatus, planned: ResolvedHyperparameters
) -> str:
    """Take what training took into the status; return what `Trained` says about it, or an empty text.

    Args:
        times: times of the train stage.
        training: results of the stage.
        planned: hyperparameters of the prediction.
    """
    prediction = run.status.prediction
    if prediction is None:
        return ""
    measured = add_measurements(prediction, training, planned, times, _train_devices(run))
    run.update(prediction=measured)
    return measured_message(measured)


def start_note(run: RunPass) -> str:
    """What the event about the start of train says about the prediction, or an empty text."""
    prediction = run.status.prediction
    return "" if prediction is None else f": {predicted_message(prediction, _train_devices(run).count)}"


def _train_devices(run: RunPass) -> TrainDevices:
    compute = run.job.spec.compute
    profile = run.snapshot.profiles.get(run.status.resolved.profile or "")
    return TrainDevices(
        count=compute.devices * compute.nodes,
        facts=device_facts(profile) if profile is not None else None,
        price_per_hour=profile.spec.cost.price_per_device_hour if profile is not None else None,
        currency=profile.spec.cost.currency if profile is not None else None,
    )


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


SMALLER_PROFILE: Final = "SmallerProfile"


def advise(run: RunPass, training: TrainingStatus, times: StageStatus | None) -> None:
    """Take advice into the status, and announce it with one event.

    Predictions alone give no advice. CPU cores have no memory of their own, so runs on them get none.

    Args:
        training: results of the train stage.
        times: its times.
    """
    profile = run.snapshot.profiles.get(run.status.resolved.profile or "")
    current = Offer.of(profile) if profile is not None else None
    if profile is None or current is None or not training.device_memory_bytes:
        return
    line = LineOnProfile(run.job.namespace, run.job.spec.model_line, profile.name)
    peaks = [*map(int, run.snapshot.peak_bytes(line)), training.device_memory_bytes][-MAX_LINE_RUNS:]
    required = max(max(peaks) / PEAK_SHARE, _evaluated_bytes(run, current, max(peaks)) / WEIGHTS_SHARE)
    offer = smaller_offer(current, _offers(run, profile), required, times.seconds if times else 0)
    if offer is None:
        return
    message = smaller_profile_message(
        runs=len(peaks),
        peak_bytes=max(peaks),
        memory_bytes=(current.memory_bytes, offer.memory_bytes),
        profile=offer.name,
        prices=(current.price, offer.price),
        currency=offer.currency,
        slowdown=offer.slowdown(current),
    )
    run.update(advice=(Advice(reason=SMALLER_PROFILE, profile=offer.name, message=shorten(message)),))
    run.draft.event(EventReason.PROFILE_ADVICE, message)


def _evaluated_bytes(run: RunPass, current: Offer, peak_bytes: int) -> float:
    """Bytes of the weights on a device in evaluation; 0 if evaluation has a profile of its own.

    If they are unknown, they are at most what training used.
    """
    evaluation, prediction = run.job.spec.evaluation, run.status.prediction
    if evaluation is not None and evaluation.profile is not None:
        return 0
    weights = (prediction.weights_bytes if prediction is not None else None) or peak_bytes
    # Otherwise evaluate pods have the devices of a train pod.
    return (
        weights if one_device_holds(weights, current.memory_bytes) else weights / run.job.spec.compute.devices
    )


def _offers(run: RunPass, own: ComputeProfile) -> Iterator[Offer]:
    """What the other profiles offer that this run could have used without any other change."""
    for profile in run.snapshot.profiles.values():
        offer = Offer.of(profile) if profile.name != own.name and _is_equivalent(run, own, profile) else None
        if offer is not None:
            yield offer


def _is_equivalent(run: RunPass, own: ComputeProfile, other: ComputeProfile) -> bool:
    """Whether the run may use the other profile, with the same kind of devices, images, engine and store."""
    spec, namespace = run.job.spec, run.job.namespace
    store = resolve_store(spec.store, other, namespace)
    has_custom_code = spec.evaluation is not None and bool(spec.evaluation.custom_metrics)
    return (
        other.metadata.deletion_timestamp is None
        and is_allowed(other, namespace, run.snapshot)
        and _domain(other) == _domain(own)
        and (other.spec.serving.engine, other.spec.images) == (own.spec.serving.engine, own.spec.images)
        and isinstance(store, StoreReference)
        and store.uri == run.status.resolved.store
        and check_devices(other, spec.compute.devices, "spec.compute.devices") is None
        and check_nodes(other, spec.compute.nodes, "spec.compute.nodes") is None
        and check_choice(other, spec.compute) is None
        and other.spec.allow.custom_code >= has_custom_code
    )


def _domain(profile: ComputeProfile) -> str:
    """The vendor of the devices: nvidia.com for nvidia.com/gpu and for nvidia.com/mig-1g.10gb."""
    return profile.spec.accelerator.resource.partition("/")[0]
