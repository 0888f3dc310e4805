"""Share of rows whose answer is right to the letter."""

from finetune_trainer.evaluate.measured import MeasuredModel


def measure(measured: MeasuredModel) -> float:
    """From 0 to 1. Surrounding white space does not count."""
    right = sum(answer in example.accepted for example, answer in measured.answered())
    return right / len(measured.examples)
