"""Share of pairs for which the chosen answer is more likely than the rejected one."""

from torch import inference_mode

from finetune_trainer.evaluate.measured import MeasuredModel
from finetune_trainer.model.completionloss import row_losses


def measure(measured: MeasuredModel) -> float:
    """Compute the share, 0 to 1, by the mean log-likelihood of an answer's tokens.

    The mean, because the sum favours short answers; of the model alone, without a reference model, so that
    models can be compared.
    """
    correct = 0
    for batch in measured.batches():
        sides = (
            [example.encoded for example in batch],
            [example.rejected for example in batch if example.rejected is not None],
        )
        with inference_mode():
            chosen, rejected = (row_losses(measured.model, measured.padded(side)) for side in sides)
        correct += int((chosen < rejected).sum())
    return correct / len(measured.examples)
