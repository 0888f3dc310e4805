"""Mean loss of the correct answers."""

from finetune_trainer.evaluate.measured import MeasuredModel
from finetune_trainer.model.completionloss import mean_completion_loss


def measure(measured: MeasuredModel) -> float:
    """Compute the loss in nats per token of the correct answers, over all rows together."""
    rows = (measured.padded([example.encoded for example in batch]) for batch in measured.batches())
    return mean_completion_loss(measured.model, rows)
