# SPDX-License-Identifier: Apache-2.0
"""Mean loss of the correct answers."""

from finetune_trainer.evaluate.measured_model import MeasuredBatch


def values(batch: MeasuredBatch) -> list[float]:
    """Return the loss of each correct answer in nats per token; 0 if the answer has no labelled token."""
    return [loss_sum / max(tokens, 1) for loss_sum, tokens in batch.losses]
