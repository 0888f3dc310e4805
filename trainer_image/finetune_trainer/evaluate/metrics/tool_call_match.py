# SPDX-License-Identifier: Apache-2.0
"""Share of rows whose answer makes the expected tool calls."""

from finetune_trainer.evaluate.examples import Example
from finetune_trainer.evaluate.measured_model import GeneratedAnswer
from finetune_trainer.scoring.json_text import find_calls


def value(answer: GeneratedAnswer, example: Example) -> float:
    """Return 1 if the answer has the same calls in any order, otherwise 0.

    Calls are equal if name and arguments are equal as JSON. A row without calls expects none.
    """
    return float(find_calls(answer.text) == example.calls)
