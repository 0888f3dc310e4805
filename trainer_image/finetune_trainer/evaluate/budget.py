# SPDX-License-Identifier: Apache-2.0
"""How long an answer may be."""

from dataclasses import dataclass
from typing import Final

from finetune_trainer.contract.configs import EvaluateConfig
from finetune_trainer.evaluate.examples import Example

SPARE_TOKENS: Final = 16
"""Tokens that an answer may be longer than the correct one, if it tokenizes the same text differently."""


@dataclass(frozen=True)
class AnswerBudget:
    """Max tokens of answers.

    Without `max_tokens`, an answer that is longer than the correct one ends soon after it: it is wrong
    already. That saves time, and hides how long it would have been.
    """

    max_tokens: int | None
    """Max tokens of every answer; None if they depend on the length of the correct one."""
    cap: int
    """Max tokens of an answer without `max_tokens`."""

    @classmethod
    def of(cls, config: EvaluateConfig) -> "AnswerBudget":
        """The budget of an evaluation."""
        return cls(config.generation.max_tokens, config.max_new_tokens)

    def tokens(self, correct_tokens: int) -> int:
        """Max tokens of an answer whose correct one has `correct_tokens`."""
        if self.max_tokens is not None:
            return self.max_tokens
        return min(self.cap, correct_tokens + SPARE_TOKENS)

    def of_row(self, example: Example, context_length: int | None) -> int:
        """Max tokens of the answer to a row; 0 or less if its prompt fills the model's context.

        Args:
            example: the row.
            context_length: context of the model in tokens; None if it is not stated.
        """
        budget = self.tokens(example.answer_tokens)
        return budget if context_length is None else min(budget, context_length - len(example.prompt))
