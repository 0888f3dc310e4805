# SPDX-License-Identifier: Apache-2.0
"""Share of answers that are not complete."""

from finetune_trainer.evaluate.examples import Example
from finetune_trainer.evaluate.measured_model import GeneratedAnswer


def value(answer: GeneratedAnswer, _: Example) -> float:
    """Return 1 if the answer ended because it reached the max number of tokens, otherwise 0."""
    return float(answer.finish_reason == "length")
