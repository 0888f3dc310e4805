# SPDX-License-Identifier: Apache-2.0
"""Checks before training that clients and metrics get back the answers of the rows.

The chat template writes an answer, a tokenizer encodes it, and a reader of answers decodes it and separates
its reasoning. If the model writes exactly what it learned, the reader must return the answer of the row. It
does not if a template writes a header that no reader knows, or a tokenizer changes characters.

Some answers are checked, of each kind of row: by who has the turn before the answer, and whether the row has
tools. Answers with calls are not checked: which engine reads them is a choice of the endpoint.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Final

from transformers import PreTrainedTokenizerBase

from finetune_trainer.contract.vocabulary import SplitName
from finetune_trainer.preflight.base_model import invalid_model_failure
from finetune_trainer.preflight.row_lengths import first_of
from finetune_trainer.rows import Row, read_rows
from finetune_trainer.scoring.text_comparison import normalize
from finetune_trainer.tokens.chat_template import NONE, ControlTokens, TemplateArguments
from finetune_trainer.tokens.encoding import RowEncoder
from finetune_trainer.tokens.reasoning import AnswerReader
from finetune_trainer.tokens.rendering import RowNotEncodable
from finetune_trainer.tokens.token_files import FoundRows

MAX_READ_ROWS: Final = 1000
"""Max rows of a split from which the checked ones are chosen: the first of each kind."""
MAX_ROWS_PER_KIND: Final = 8
MAX_SHOWN_CHARACTERS: Final = 40


@dataclass
class _Found:
    """Answers that come back as another text."""

    checked: int = 0
    wrong: int = 0
    """Number of those that no metric counts as correct."""
    rows: dict[SplitName, FoundRows] = field(default_factory=dict)
    what: str = ""
    """What happens to the first of them."""

    def add(self, split: SplitName, number: int, expected: str, content: str) -> None:
        """Add an answer, with the content that the reader returns for it."""
        self.checked += 1
        if content == expected:
            return
        self.wrong += normalize(content) != normalize(expected)
        self.rows.setdefault(split, FoundRows()).add(number, "")
        self.what = self.what or _difference(expected, content)


def check_read_back(
    uri: str,
    paths: Mapping[SplitName, Path],
    tokenizer: PreTrainedTokenizerBase,
    arguments: TemplateArguments = NONE,
) -> tuple[str, ...]:
    """Return a warning if some answers come back as another text.

    Raises StageFailure (BASE_MODEL_INVALID) if no metric would count any of the checked answers as correct.
    """
    encoder, reader, control = (
        RowEncoder(tokenizer, arguments),
        AnswerReader(tokenizer),
        ControlTokens(tokenizer),
    )
    found = _Found()
    for split, path in paths.items():
        chosen = list(_chosen(read_rows(path), reader, control))
        answers = encoder.encode_answers([row for _, row in chosen])
        for (number, row), encoded in zip(chosen, answers, strict=True):
            if not isinstance(encoded, RowNotEncodable):
                found.add(split, number, reader.reference(row.output), reader.content(*encoded))
    count = sum(each.rows for each in found.rows.values())
    if not count:
        return ()
    what = (
        f"{count} of {found.checked} checked answers ({first_of(found.rows)}) do not come back as they"
        f" are in the rows: {found.what}"
    )
    if found.wrong == found.checked:
        raise invalid_model_failure(
            uri,
            f"{what}. Every answer would count as wrong; use another base model, or give this one a"
            " chat_template.jinja that writes answers directly after the prompt",
        )
    warning = (
        f"{what}. Metrics count such an answer as wrong, even if it is the row's. Correct the rows, or give"
        " the base model another chat_template.jinja"
    )
    return (warning,)


def _chosen(rows: Iterable[Row], reader: AnswerReader, control: ControlTokens) -> Iterator[tuple[int, Row]]:
    """The first rows of each kind with a correct answer, with their numbers from 1."""
    kinds: Counter[tuple[str, bool]] = Counter()
    for number, row in enumerate(islice(rows, MAX_READ_ROWS), 1):
        if row.label is False or row.messages[-1].tool_calls is not None or not reader.reference(row.output):
            continue
        # Another warning names rows with control tokens in their text.
        if control.first_in(row) is not None:
            continue
        kind = (row.messages[-2].role, row.tools is not None)
        kinds[kind] += 1
        if kinds[kind] <= MAX_ROWS_PER_KIND:
            yield number, row


def _difference(expected: str, content: str) -> str:
    """How an answer comes back, without the text of the row."""
    before, found, after = content.partition(expected)
    if not found:
        return (
            "the reader of answers returns another text, for example because the tokenizer changes characters"
        )
    parts = [
        f"{text[:MAX_SHOWN_CHARACTERS]!r} {where}"
        for text, where in ((before, "before"), (after, "after"))
        if text
    ]
    return f"clients and metrics get {' and '.join(parts)} the answer"
