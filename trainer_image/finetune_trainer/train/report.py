# SPDX-License-Identifier: Apache-2.0
"""The training report in the run's folder, as JSON and as an HTML page."""

import json
import logging
from typing import Any, Final

from pydantic.alias_generators import to_camel

from finetune_trainer.contract.configs import TrainConfig
from finetune_trainer.contract.method import OBJECTIVES
from finetune_trainer.contract.results import OUTLOOKS, LearningCurve, TrainResult
from finetune_trainer.report.document import encode
from finetune_trainer.report.html_page import training_page
from finetune_trainer.report.training import REPORT_NAME
from finetune_trainer.store import RunFolder
from finetune_trainer.train.states.losses import LossCurve

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
    folder.write(PAGE_NAME, training_page(report).encode())
    return f"{folder.uri}/{PAGE_NAME}"
