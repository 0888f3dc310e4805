"""Share of pairs whose chosen answer the model finds likelier than the rejected one."""

from torch import inference_mode

from finetune_trainer.evaluate.measured import MeasuredModel
from finetune_trainer.model.loss import row_losses


def measure(measured: MeasuredModel) -> float:
    """From 0 to 1, by the mean log-likelihood of an answer's tokens.

    By the mean, because a sum is mostly the higher the shorter an answer is; that of each model alone,
    without a reference, so that models can be compared.
    """
    right = 0
    for batch in measured.batches():
        sides = (
            [example.encoded for example in batch],
            [example.rejected for example in batch if example.rejected is not None],
        )
        with inference_mode():
            chosen, rejected = (row_losses(measured.model, measured.padded(side)) for side in sides)
        right += int((chosen < rejected).sum())
    return right / len(measured.examples)
