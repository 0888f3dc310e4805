"""Share of rows whose answer equals a correct text."""

from finetune_trainer.evaluate.measured import MeasuredBatch


def values(batch: MeasuredBatch) -> list[float]:
    """Return 1 for each correct answer, otherwise 0. Surrounding white space is ignored."""
    answered = zip(batch.examples, batch.answers, strict=True)
    return [float(answer.text in example.accepted) for example, answer in answered]
