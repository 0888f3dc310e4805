# SPDX-License-Identifier: Apache-2.0
"""Mean length of the answers."""

from finetune_trainer.evaluate.examples import Example
from finetune_trainer.evaluate.measured_model import GeneratedAnswer


def value(answer: GeneratedAnswer, _: Example) -> float:
    """Return the number of generated tokens, without the one that ends the answer."""
    return float(answer.num_tokens)
