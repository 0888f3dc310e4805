"""Failures of the checks before the first request, which are the same for both engines."""

from typing import Final

from finetune_trainer.contract.outcomes import FailureReason
from finetune_trainer.runtime.failure import StageFailure

REMEDY: Final = "Check that base model and Checkpoint belong together, or train the model again"
"""What to do if a model differs from its record."""


def without_effect(name: str) -> StageFailure:
    """The failure of an adapter that predicts exactly what its base model does."""
    return StageFailure(
        FailureReason.ARTIFACT_CORRUPT,
        f"model {name!r}: its adapter changes nothing: all logits equal those of the base model. Train it"
        " again with a higher hyperparameters.learningRate, or pin another Checkpoint",
    )
