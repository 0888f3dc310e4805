# SPDX-License-Identifier: Apache-2.0
"""The calls of one judge: which rows, in which order of the answers, and what has been replied."""

import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from finetune_trainer.contract.own_metrics import CALLS_PER_ROW, Judge
from finetune_trainer.evaluate.judge.prompt import messages_of
from finetune_trainer.rows import Message


@dataclass(frozen=True)
class AnswerPair:
    """The answers of the tuned model and of its opponent to one row."""

    row: int
    """Number of the row in its split, from 1."""
    turns: Sequence[Message]
    """The conversation before the answer."""
    tuned: str
    other: str

    @property
    def is_same(self) -> bool:
        """Whether there is nothing to compare."""
        return self.tuned == self.other


@dataclass(frozen=True)
class Question:
    """One call."""

    judge: Judge
    system: str
    pair: AnswerPair
    tuned_first: bool
    """Whether the answer of the tuned model is A."""

    @cached_property
    def body(self) -> Mapping[str, Any]:
        """The request, as in the chat API of OpenAI."""
        pair = self.pair
        answers = (pair.tuned, pair.other) if self.tuned_first else (pair.other, pair.tuned)
        return {
            "model": self.judge.model,
            "messages": messages_of(self.system, pair.turns, *answers),
            "temperature": self.judge.temperature,
        }

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the call and of what its reply means. Equal calls are made once."""
        meaning = [self.pair.row, self.tuned_first]
        content = json.dumps([self.judge.endpoint, self.body, meaning], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


def sample(pairs: Sequence[AnswerPair], max_calls: int, seed: int) -> list[AnswerPair]:
    """The rows that the calls suffice for, in a random order. The seed and the numbers of rows decide it.

    Judges with the same rows judge the same ones; those of a smaller budget are among those of a larger one.
    """
    shuffled = list(pairs)
    random.Random(seed).shuffle(shuffled)  # noqa: S311 - no secret depends on it
    return shuffled[: max_calls // CALLS_PER_ROW]


def questions_of(judge: Judge, system: str, pair: AnswerPair) -> Iterator[Question]:
    """Yield both calls of a pair; none if its answers are equal."""
    if not pair.is_same:
        for tuned_first in (True, False):
            yield Question(judge, system, pair, tuned_first)
