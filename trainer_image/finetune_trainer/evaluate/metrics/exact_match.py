"""Share of rows whose answer equals a correct text."""

from finetune_trainer.evaluate.measured import MeasuredModel


def measure(measured: MeasuredModel) -> float:
    """Compute the share of correct answers, 0 to 1. Surrounding white space is ignored."""
    correct = sum(answer in example.accepted for example, answer in measured.answered())
    return correct / len(measured.examples)
