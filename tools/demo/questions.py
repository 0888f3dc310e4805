# SPDX-License-Identifier: Apache-2.0
"""Compare the answers of base and tuned model to held-out questions."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from openai import OpenAI, OpenAIError

from finetune_trainer.contract.dataset import Split
from finetune_trainer.data.formats.base import RawRow
from finetune_trainer.data.split_files import split_of
from finetune_trainer.rows import Row, load_rows

NUM_QUESTIONS: Final = 3
MAX_QUESTION_LENGTH: Final = 160
"""Maximum characters of a question, so that it fits into a table."""
ANSWER_TOKENS: Final = 16


@dataclass(frozen=True)
class ComparedAnswers:
    """One question with the expected answer and those of both models."""

    prompt: str
    expected: str
    base: str
    tuned: str


def held_out(rows: Path, split: Split) -> list[Row]:
    """NUM_QUESTIONS short rows of the test split with different answers; always the same rows.

    `prepare` uses the same rule for the split.
    """
    chosen: dict[str, Row] = {}
    for row in load_rows(rows):
        short = len(row.input[-1].content) <= MAX_QUESTION_LENGTH
        if short and len(chosen) < NUM_QUESTIONS and split_of(RawRow(row), split) == "test":
            chosen.setdefault(row.output, row)
    return list(chosen.values())


def ask(client: OpenAI, model: str, prompt: str) -> str:
    """The model's answer at temperature 0, on one line."""
    completion = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": prompt}],
        max_tokens=ANSWER_TOKENS,
        temperature=0,
    )
    return " ".join((completion.choices[0].message.content or "").split())


def ask_streamed(client: OpenAI, model: str, prompt: str) -> str:
    """The answer of `ask`, read as a stream.

    Raises:
        OpenAIError: the request failed, or its stream ended before the answer did.
    """
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": prompt}],
        max_tokens=ANSWER_TOKENS,
        temperature=0,
        stream=True,
    )
    choices = [choice for chunk in stream for choice in chunk.choices]
    if not any(choice.finish_reason for choice in choices):
        raise OpenAIError("the stream ended before the answer did")
    return " ".join("".join(choice.delta.content or "" for choice in choices).split())


def compare(client: OpenAI, tuned: str, rows: list[Row]) -> list[ComparedAnswers]:
    """Send each question to the base model and to the tuned model with the same parameters."""
    return [
        ComparedAnswers(
            prompt=row.input[0].content,
            expected=row.output,
            base=ask(client, "base", row.input[0].content),
            tuned=ask(client, tuned, row.input[0].content),
        )
        for row in rows
    ]
