"""F1 of the words of an answer and of the right one, as in SQuAD (Rajpurkar et al., 2016)."""

from collections.abc import Collection
from math import fsum

from finetune_trainer.evaluate.measured import MeasuredModel


def measure(measured: MeasuredModel) -> float:
    """From 0 to 1, the mean over all rows."""
    scores = [f1(answer, example.accepted) for example, answer in measured.answered()]
    return fsum(scores) / len(scores)


def f1(answer: str, accepted: Collection[str]) -> float:
    """Of one answer and the right text that it is nearest to; 0 where no text is right.

    Case, punctuation and English articles do not count. White space divides words: an answer in Chinese or
    Japanese is one word.
    """
    from torchmetrics.functional.text import squad

    if not accepted:
        return 0.0
    said = {"id": "row", "prediction_text": answer}
    percent = squad(said, {"id": "row", "answers": {"text": sorted(accepted)}})["f1"]
    # It comes in float32, whose rounding would keep 0.8 below a bar of 0.8.
    return round(float(percent) / 100, 6)
