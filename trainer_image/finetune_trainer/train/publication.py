# SPDX-License-Identifier: Apache-2.0
"""Publication of a finished run: its checkpoints in the store, and its report in the run's folder.

Checkpoints are the best, final and kept weights. The training report is written as JSON, as an HTML page, and
with its losses as an event file of TensorBoard.
"""

import json
import logging
import time
from pathlib import Path
from typing import Any, Final, TypedDict

from pydantic.alias_generators import to_camel

from finetune_trainer.contract.base import Digest
from finetune_trainer.contract.configs import TrainConfig
from finetune_trainer.contract.method import OBJECTIVES
from finetune_trainer.contract.references import ArtifactRef
from finetune_trainer.contract.results import OUTLOOKS, CheckpointResult, LearningCurve, TrainResult
from finetune_trainer.contract.vocabulary import CheckpointType
from finetune_trainer.manifest import MANIFEST_NAME
from finetune_trainer.model.bundle import Bundle
from finetune_trainer.model.probe_record import PROBE_FILE
from finetune_trainer.report.document import encode
from finetune_trainer.report.event_file import EVENT_FILE, event_file
from finetune_trainer.report.html_page import training_page
from finetune_trainer.report.training import REPORT_NAME
from finetune_trainer.rooted_open import copy_file, names_in
from finetune_trainer.store import RunFolder, Store
from finetune_trainer.train.state_folders import ROW_LOSSES
from finetune_trainer.train.states.ledger import LossCurve, Retention, RunLedger
from finetune_trainer.train.states.resume_states import ResumeStates

PAGE_NAME: Final = "report.html"
VERSION: Final = 1

logger = logging.getLogger(__name__)


def training_report(config: TrainConfig, result: TrainResult, curve: LossCurve) -> dict[str, Any]:
    """Create the report of a finished run as JSON types; losses are in `lossUnit`."""
    return {
        "version": VERSION,
        "run": config.run,
        "method": config.method.label,
        "lossUnit": "loss per row"
        if OBJECTIVES[config.method.objective].rows.is_preference_data
        else "nats per token",
        "baseModel": config.base_model,
        "dataset": config.dataset,
        "hyperparameters": config.hyperparameters.to_dict(),
        "steps": result.steps,
        "totalSteps": config.hyperparameters.total_steps,
        "stoppedEarly": result.stopped_early,
        "overfit": result.overfit,
        "trainLoss": result.train_loss,
        "validationLoss": result.validation_loss,
        "tokens": result.tokens,
        "tokensPerSecond": result.tokens_per_second,
        "deviceMemoryBytes": result.device_memory_bytes,
        "restarts": result.restarts,
        "lostDeviceSeconds": result.lost_device_seconds,
        "checkpoints": [
            {
                "step": checkpoint.step,
                "digest": checkpoint.digest,
                "trainLoss": checkpoint.train_loss,
                "validationLoss": checkpoint.validation_loss,
                "best": checkpoint.best,
                "final": checkpoint.final,
            }
            for checkpoint in result.checkpoints
        ],
        "training": [
            {"step": point.step, "steps": point.steps, "loss": point.loss} for point in curve.points
        ],
        "validation": [
            {"step": each.step, "epochs": each.epochs, "loss": each.loss} for each in curve.validation
        ],
        "learningCurve": None,
    }


def add_learning_curve(folder: RunFolder, curve: LearningCurve) -> None:
    """Add the curve to the report of the main run. Raises StageFailure (STORE_UNAVAILABLE)."""
    content = folder.read(REPORT_NAME)
    if content is None:
        logger.warning("%s/%s was deleted: the learning curve is in the result only", folder.uri, REPORT_NAME)
        return
    points = [{to_camel(name): value for name, value in point.model_dump().items()} for point in curve.points]
    shown = {
        "validationRows": curve.validation_rows,
        "outlook": OUTLOOKS[curve.outlook],
        "points": points,
    }
    write_training_report(folder, json.loads(content) | {"learningCurve": shown})


def write_training_report(folder: RunFolder, report: dict[str, Any]) -> str:
    """Write the report, and return the URI of the page. Raises StageFailure (STORE_UNAVAILABLE)."""
    folder.write(REPORT_NAME, encode(report))
    folder.write(EVENT_FILE, event_file(report, time.time()))
    folder.write(PAGE_NAME, training_page(report).encode())
    return f"{folder.uri}/{PAGE_NAME}"


def publish_checkpoints(
    store: Store,
    states: ResumeStates,
    ledger: RunLedger,
    final: Path,
    retention: Retention,
    *,
    weights_type: CheckpointType,
    bundle: Bundle,
    step: int,
    epoch: float,
) -> tuple[CheckpointResult, ...]:
    """Publish the weights after `step`, from the staging folder `final`, and the best and the kept weights.

    The best weights are those with the lowest validation loss; without validation, the final ones. Each
    digest is published once, because a kept step may also be the best. Each checkpoint gets the files of
    `bundle`. Its probe, if its weights have one, is derived from it. The result is sorted by step.
    Raises StageFailure (STORE_UNAVAILABLE).
    """
    best = ledger.best
    final_is_best = best is None or best.step == step
    published: dict[Digest, CheckpointResult] = {}

    def add(checkpoint: CheckpointResult) -> None:
        same = published.get(checkpoint.digest)
        if same is not None:
            merged = {
                "best": same.best or checkpoint.best,
                "final": same.final or checkpoint.final,
                "probe": checkpoint.probe or same.probe,
            }
            checkpoint = checkpoint.model_copy(update=merged)
        published[checkpoint.digest] = checkpoint

    for kept in retention.published(ledger.kept, step):
        if best is None or kept.step != best.step:
            saved = _publish_saved(store, states.kept_folder(kept.step), bundle)
            add(CheckpointResult(**saved, type=weights_type, **kept.model_dump()))
    if best is not None and not final_is_best:
        saved = _publish_saved(store, states.best_folder(best.step), bundle)
        add(CheckpointResult(**saved, type=weights_type, best=True, **best.model_dump()))
    add(
        CheckpointResult(
            **_publish_folder(store, final, bundle),
            type=weights_type,
            step=step,
            epoch=epoch,
            train_loss=ledger.final_train_loss,
            validation_loss=ledger.validation_loss,
            **ledger.reward_figures(),
            best=final_is_best,
            final=True,
        )
    )
    return tuple(sorted(published.values(), key=lambda checkpoint: checkpoint.step))


class _Published(TypedDict):
    digest: Digest
    probe: Digest | None


def _publish_saved(store: Store, folder: Path, bundle: Bundle) -> _Published:
    with store.staging() as staging:
        for name in names_in(folder, folder):
            if name not in (MANIFEST_NAME, ROW_LOSSES):
                copy_file(folder / name, staging / name, folder)
        return _publish_folder(store, staging, bundle)


def _publish_folder(store: Store, staging: Path, bundle: Bundle) -> _Published:
    """Publish a staging folder; the probe in it is derived from the checkpoint, and no part of it."""
    bundle.write(staging)
    file = staging / PROBE_FILE
    probe = file.read_bytes() if file.exists() else None
    file.unlink(missing_ok=True)
    digest = store.publish("checkpoints", staging)
    if probe is None:
        return {"digest": digest, "probe": None}
    with store.staging() as derived:
        (derived / PROBE_FILE).write_bytes(probe)
        of = ArtifactRef(kind="checkpoints", digest=digest)
        return {"digest": digest, "probe": store.publish(of, derived)}
