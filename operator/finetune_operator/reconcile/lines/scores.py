# SPDX-License-Identifier: Apache-2.0
"""Whose scores of a Checkpoint count where: those of the run that made it, or those of an Evaluation."""

from typing import Final

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.evaluation import EvaluationStatus
from finetune_operator.api.evaluation_resource import Evaluation

OF_RUN: Final = "Run"
"""Source of the scores of the run that made the Checkpoint. No Evaluation can have this name."""


def is_of_run(entry: EvaluationStatus) -> bool:
    """Whether the run that made the Checkpoint measured it."""
    return entry.source == OF_RUN


def scores_of(checkpoint: Checkpoint, evaluation: str | None = None) -> EvaluationStatus | None:
    """The scores of the Checkpoint from the named Evaluation, or from its run."""
    return next(
        (
            each
            for each in checkpoint.status.evaluations
            if (is_of_run(each) if evaluation is None else each.source == evaluation)
        ),
        None,
    )


def is_resolved(evaluation: Evaluation, checkpoint: Checkpoint) -> bool:
    """Whether the Evaluation measures these weights, not earlier ones of a Checkpoint of the same name."""
    digests = evaluation.status.resolved.checkpoint_digests or ()
    resolved = dict(zip(evaluation.spec.checkpoints, digests, strict=False))
    return resolved.get(checkpoint.name, checkpoint.spec.digest) == checkpoint.spec.digest
