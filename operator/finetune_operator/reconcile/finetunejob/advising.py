# SPDX-License-Identifier: Apache-2.0
"""Advice for later runs, from what this run and those before it measured."""

from collections.abc import Iterator
from typing import Final

from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.api.finetune_job_status import Advice, TrainingStatus
from finetune_operator.api.references import StoreReference
from finetune_operator.api.stage_status import StageStatus
from finetune_operator.manifests.pod_sizing import WEIGHTS_SHARE, one_device_holds
from finetune_operator.reconcile.finetunejob.run import Run
from finetune_operator.reconcile.inputs.calibration import MAX_LINE_RUNS, LineOnProfile
from finetune_operator.reconcile.platform.profiles import (
    check_devices,
    check_nodes,
    is_allowed,
    resolve_store,
)
from finetune_operator.reconcile.platform.queues import check_choice
from finetune_operator.reconcile.platform.smallerprofile import PEAK_SHARE, Offer, smaller_offer
from finetune_operator.status.conditions import shortened
from finetune_operator.status.prediction import smaller_profile_message
from finetune_operator.status.reasons import EventReason

SMALLER_PROFILE: Final = "SmallerProfile"


def advise(run: Run, training: TrainingStatus, times: StageStatus | None) -> None:
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
    run.update(advice=(Advice(reason=SMALLER_PROFILE, profile=offer.name, message=shortened(message)),))
    run.draft.event(EventReason.PROFILE_ADVICE, message)


def _evaluated_bytes(run: Run, current: Offer, peak_bytes: int) -> float:
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


def _offers(run: Run, own: ComputeProfile) -> Iterator[Offer]:
    """What the other profiles offer that this run could have used without any other change."""
    for profile in run.snapshot.profiles.values():
        offer = Offer.of(profile) if profile.name != own.name and _is_equivalent(run, own, profile) else None
        if offer is not None:
            yield offer


def _is_equivalent(run: Run, own: ComputeProfile, other: ComputeProfile) -> bool:
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
