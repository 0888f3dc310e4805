# SPDX-License-Identifier: Apache-2.0
"""The subject Prompted: the base model with a system prompt and training rows as examples before each row.

It shows what a good prompt alone would have given. The examples are turns of the conversation, in the same
chat template as the rows. Their answers are context: the loss of a row is that of the same tokens as for the
other subjects, given the longer prompt.

The rule that chooses the training rows:

1. A row is a candidate if its answer is a correct one, its input is not that of an evaluated row, and it has
   the same tools as all evaluated rows.
2. The order of the candidates is drawn with the seed.
3. If the answers look like labels, the labels take turns, in an order drawn with the seed, so that the prompt
   shows as many of them as possible.
4. A candidate with which the prompt no longer fits is skipped.
"""

import heapq
import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, Final

from transformers import PreTrainedTokenizerBase

from finetune_trainer import canonical_json
from finetune_trainer.contract.base import Digest
from finetune_trainer.contract.configs import EvaluateConfig
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.data.checks.scanner import Scanner
from finetune_trainer.data.row_index import input_digest
from finetune_trainer.evaluate.examples import AnswerBudget, Example, encode_examples
from finetune_trainer.manifest import digest_of
from finetune_trainer.model.loading import read_context_length
from finetune_trainer.rows import Message, Row
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.scoring.metric_scope import MAX_LABELS, MIN_ROWS_PER_LABEL
from finetune_trainer.store import RunFolder
from finetune_trainer.tokens.chat_template import has_system_turn
from finetune_trainer.tokens.encoding import RowEncoder
from finetune_trainer.tokens.rendering import RowNotEncodable

MAX_CANDIDATES: Final = 256
"""Max rows that are tried, and max rows per label that are kept."""


@dataclass(frozen=True, order=True)
class ShownRow:
    """A training row that the prompt shows."""

    number: int
    """Number of the row in the train split, from 1."""
    row: Row


def choose_rows(
    training: Iterable[Row],
    evaluated: Sequence[Row],
    count: int,
    seed: int,
    fits: Callable[[Sequence[ShownRow]], bool],
) -> list[ShownRow]:
    """Choose up to `count` rows by the rule of this module; the same arguments give the same rows.

    Args:
        training: rows of the train split, in order.
        evaluated: rows whose input must not be shown.
        count: number of rows to choose.
        seed: seed of the order.
        fits: whether a prompt with these rows fits.
    """
    chosen: list[ShownRow] = []
    if count == 0:
        return chosen
    for candidate in _candidates(training, evaluated, seed):
        if fits([*chosen, candidate]):
            chosen.append(candidate)
        if len(chosen) == count:
            break
    return chosen


def _candidates(training: Iterable[Row], evaluated: Sequence[Row], seed: int) -> Iterator[ShownRow]:
    """Candidates in the order in which they are tried."""
    draw = random.Random(seed)  # noqa: S311 - a documented choice, not a secret
    inputs = {input_digest(row) for row in evaluated}
    tools = set(map(_tools, evaluated))
    drawn: list[tuple[float, int, Row]] = []
    by_answer: dict[str, list[tuple[float, int, Row]]] = {}
    rows = 0
    for number, row in enumerate(training, 1):
        key = draw.random()
        if row.label is False or {_tools(row)} != tools or input_digest(row) in inputs:
            continue
        rows += 1
        entry = (-key, -number, row)
        _keep(drawn, entry)
        # One answer more than labels may have shows that there are no labels.
        if row.output in by_answer or len(by_answer) <= MAX_LABELS:
            _keep(by_answer.setdefault(row.output, []), entry)
    has_labels = len(by_answer) <= MAX_LABELS and 1 < len(by_answer) * MIN_ROWS_PER_LABEL <= rows
    if not has_labels:
        return map(_shown, sorted(drawn, reverse=True))
    labels = sorted(by_answer)
    draw.shuffle(labels)
    turns = zip_longest(*(sorted(by_answer[label], reverse=True) for label in labels))
    return (_shown(entry) for entry in chain.from_iterable(turns) if entry is not None)


def _tools(row: Row) -> str | None:
    return None if row.tools is None else canonical_json.canonicalize(row.tools)


def _keep(heap: list[tuple[float, int, Row]], entry: tuple[float, int, Row]) -> None:
    if len(heap) < MAX_CANDIDATES:
        heapq.heappush(heap, entry)
    else:
        heapq.heappushpop(heap, entry)


def _shown(entry: tuple[float, int, Row]) -> ShownRow:
    return ShownRow(-entry[1], entry[2])


PROMPT_FILE: Final = "prompt.json"
UNLIMITED: Final = 1 << 30


@dataclass(frozen=True)
class FewShotPrompt:
    """Instructions and examples before each row."""

    system_prompt: str
    shown: Sequence[ShownRow]
    has_system_turn: bool
    """Whether the chat template has system turns; otherwise the text is before the first user turn."""

    def apply(self, row: Row) -> Row:
        """Return the row with the prompt. A system turn of the row follows the system prompt."""
        own, turns = _without_system(row.messages)
        examples = [
            replace(message, learned=False) if message.role == "assistant" else message
            for each in self.shown
            for message in _without_system(each.row.messages)[1]
        ]
        text = "\n\n".join(filter(None, (self.system_prompt, own)))
        return replace(row, messages=self._instructed(text, (*examples, *turns)), form=_form(row))

    def _instructed(self, text: str, turns: tuple[Message, ...]) -> tuple[Message, ...]:
        if not text:
            return turns
        if self.has_system_turn:
            return (Message("system", text), *turns)
        first = next(index for index, turn in enumerate(turns) if turn.role == "user")
        instructed = replace(turns[first], content=f"{text}\n\n{turns[first].content}")
        return (*turns[:first], instructed, *turns[first + 1 :])

    def to_dict(self) -> dict[str, Any]:
        """The prompt as it is recorded."""
        return {
            "systemPrompt": self.system_prompt,
            "systemTurn": self.has_system_turn,
            "examples": [
                {"row": each.number, "messages": [message.to_dict() for message in each.row.messages]}
                for each in self.shown
            ],
        }


def encode_prompted(
    config: EvaluateConfig,
    training: Iterable[Row],
    rows: Sequence[Row],
    plain: Sequence[Example],
    *,
    tokenizer: PreTrainedTokenizerBase,
    choices: Sequence[str],
    base: Path,
    folder: RunFolder,
    scanner: Scanner,
) -> list[Example]:
    """Choose the examples, record the prompt in `folder`, and encode the rows with it.

    Args:
        config: config of the stage.
        training: rows of the train split.
        rows: the evaluated rows.
        plain: the evaluated rows without the prompt.
        tokenizer: the tokenizer with the chat template of the rows.
        choices: labels of a constrained classification.
        base: folder of the base model, whose context the prompt must fit.
        folder: gets `PROMPT_FILE`.
        scanner: hides its findings in the file.

    Raises StageFailure (INVALID_CONFIG) if there is nothing to show and no system prompt.
    """
    settings, arguments = config.prompted, config.chat_template_kwargs
    empty = FewShotPrompt(settings.system_prompt, (), has_system_turn(tokenizer, arguments))
    room = _ContextBudget(config, rows, plain, RowEncoder(tokenizer, arguments), read_context_length(base))
    shown = choose_rows(
        training,
        [rows[example.row - 1] for example in plain],
        settings.examples,
        settings.seed,
        lambda shown: room.fits(replace(empty, shown=shown)),
    )
    if not shown and not settings.system_prompt:
        raise StageFailure(
            FailureReason.INVALID_CONFIG,
            "evaluation.prompted has no systemPrompt, and no row of the train split can be shown as an"
            " example: each is longer than the context of the base model, has the input of an evaluated row,"
            " or other tools. Set systemPrompt",
        )
    prompt = replace(empty, shown=tuple(shown))
    examples = encode_examples(
        [prompt.apply(row) for row in rows],
        tokenizer,
        UNLIMITED,
        config.split,
        arguments,
        choices=choices,
    )
    first = tokenizer.decode(examples[0].prompt, skip_special_tokens=False)
    record = {
        **prompt.to_dict(),
        "seed": settings.seed,
        "requestedExamples": settings.examples,
        "firstPrompt": first,
    }
    folder.write(PROMPT_FILE, json.dumps(scanner.masked_json(record), ensure_ascii=False, indent=2).encode())
    return [
        _truncate_example(example, config.max_sequence_length + len(example.prompt) - len(without.prompt))
        for example, without in zip(examples, plain, strict=True)
    ]


def prompt_digest(folder: RunFolder) -> Digest | None:
    """Digest of the recorded prompt; None if there is none. Raises StageFailure (STORE_UNAVAILABLE)."""
    content = folder.read(PROMPT_FILE)
    return None if content is None else digest_of(content)


class _ContextBudget:
    """Whether a prompt leaves room for the longest row and its answer in the model's context."""

    def __init__(
        self,
        config: EvaluateConfig,
        rows: Sequence[Row],
        plain: Sequence[Example],
        encoder: RowEncoder,
        context_length: int | None,
    ) -> None:
        budget = AnswerBudget.of(config)
        needed, example = max(
            ((len(example.prompt) + budget.tokens(example.answer_tokens), example) for example in plain),
            key=lambda pair: pair[0],
        )
        self._row = rows[example.row - 1]
        self._answer_tokens = needed - len(example.prompt)
        self._encoder = encoder
        self._context_length = context_length

    def fits(self, prompt: FewShotPrompt) -> bool:
        try:
            tokens = len(self._encoder.encode_prompt(prompt.apply(self._row)))
        except RowNotEncodable:
            return False
        return self._context_length is None or tokens + self._answer_tokens <= self._context_length


def _without_system(messages: tuple[Message, ...]) -> tuple[str, tuple[Message, ...]]:
    """Text of the system turn, and the other turns."""
    if messages[0].role != "system":
        return "", messages
    return messages[0].content, messages[1:]


def _form(row: Row) -> Any:
    return "ChatMessages" if row.form == "PromptCompletion" else row.form


def _truncate_example(example: Example, max_length: int) -> Example:
    rejected = example.rejected
    return replace(
        example,
        encoded=example.encoded.truncate(max_length),
        rejected=None if rejected is None else rejected.truncate(max_length),
    )
