# SPDX-License-Identifier: Apache-2.0
"""Share of pairs for which the chosen answer is more likely than the rejected one."""

from finetune_trainer.evaluate.measured_model import MeasuredBatch


def values(batch: MeasuredBatch) -> list[float]:
    """Return 1 for each pair whose chosen answer is more likely, by the mean log-likelihood of its tokens.

    The mean, because the sum favours short answers; of the model alone, without a reference model, so that
    models can be compared. A pair of which truncation leaves no answer counts 0.
    """
    pairs = zip(batch.losses, batch.rejected_losses, strict=True)
    return [
        float(all((tokens, other_tokens)) and loss_sum / tokens < other_sum / other_tokens)
        for (loss_sum, tokens), (other_sum, other_tokens) in pairs
    ]
