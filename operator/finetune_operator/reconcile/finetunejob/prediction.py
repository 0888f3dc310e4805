# SPDX-License-Identifier: Apache-2.0
"""The prediction of a run: recorded after preflight, and compared with what training took."""

from finetune_operator.api.finetune_job_status import TrainingStatus
from finetune_operator.api.stage_status import StageStatus
from finetune_operator.api.training import ResolvedHyperparameters
from finetune_operator.reconcile.finetunejob.run import Run
from finetune_operator.reconcile.platform.profiles import device_facts
from finetune_operator.status.prediction import (
    TrainDevices,
    add_measurements,
    find_warning,
    measured_message,
    predicted_message,
    predicted_status,
)
from finetune_operator.status.reasons import EventReason
from finetune_trainer.contract.prediction import Prediction


def record_prediction(run: Run, predicted: Prediction | None) -> str:
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
    run: Run, times: StageStatus | None, training: TrainingStatus, planned: ResolvedHyperparameters
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


def start_note(run: Run) -> str:
    """What the event about the start of train says about the prediction, or an empty text."""
    prediction = run.status.prediction
    return "" if prediction is None else f": {predicted_message(prediction, _train_devices(run).count)}"


def _train_devices(run: Run) -> TrainDevices:
    compute = run.job.spec.compute
    profile = run.snapshot.profiles.get(run.status.resolved.profile or "")
    return TrainDevices(
        count=compute.devices * compute.nodes,
        facts=device_facts(profile) if profile is not None else None,
        price_per_hour=profile.spec.cost.price_per_device_hour if profile is not None else None,
        currency=profile.spec.cost.currency if profile is not None else None,
    )
