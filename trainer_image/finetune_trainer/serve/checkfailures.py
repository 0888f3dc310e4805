# SPDX-License-Identifier: Apache-2.0
"""Failures of the checks before the first request, which are the same for both engines."""

import logging
from typing import Final

from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.model.probe_record import (
    UNMEASURED_TOLERANCE,
    Computation,
    ProbeRecord,
    mismatch,
    tolerance_of,
)
from finetune_trainer.runtime.termination import StageFailure

REMEDY: Final = "Check that base model and Checkpoint belong together, or train the model again"
"""What to do if a model differs from its record."""

logger = logging.getLogger(__name__)


def without_effect(name: str) -> StageFailure:
    """The failure of an adapter that predicts exactly what its base model does."""
    return StageFailure(
        FailureReason.ARTIFACT_CORRUPT,
        f"model {name!r}: its adapter changes nothing: all logits equal those of the base model. Train it"
        " again with a higher hyperparameters.learningRate, or pin another Checkpoint",
    )


def require_probe(
    name: str, record: ProbeRecord, computation: Computation, version: str, difference: float
) -> None:
    """Check how much the model of this name differs from its record. `version`: that of the engine.

    Raises StageFailure (ARTIFACT_CORRUPT) above a tolerance that was measured; above another one it warns.
    """
    tolerance = tolerance_of(record, computation)
    if difference <= (UNMEASURED_TOLERANCE if tolerance is None else tolerance):
        logger.info("model %s differs from its probe by up to %.3g nats", name, difference)
        return
    message = f"model {name!r}: {mismatch(record, computation, version, difference)}"
    if tolerance is not None:
        raise StageFailure(FailureReason.ARTIFACT_CORRUPT, f"{message}. {REMEDY}")
    logger.warning("%s. It is served: no tolerance was measured for this combination", message)
