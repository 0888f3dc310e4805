"""Mean loss of the right answers."""

from finetune_trainer.evaluate.measured import MeasuredModel
from finetune_trainer.model.loss import mean_completion_loss


def measure(measured: MeasuredModel) -> float:
    """In nats per token of the right answers, over all rows together."""
    rows = (measured.padded([example.encoded for example in batch]) for batch in measured.batches())
    return mean_completion_loss(measured.model, rows)
