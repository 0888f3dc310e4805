# SPDX-License-Identifier: Apache-2.0
"""Encoded rows on disk: made once by preflight, and mapped into memory by every process that trains.

The folder has `tokens.json`, and a folder per split with the columns of its rows. Rows are not truncated.
"""

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, overload

import numpy as np
from typing_extensions import override

from finetune_trainer import canonical
from finetune_trainer.contract.vocabulary import SplitName
from finetune_trainer.tokens.answers import AnswerEncoder, EncodedAnswers, Encoder
from finetune_trainer.tokens.columns import ColumnWriter, Int64s, TokenColumn
from finetune_trainer.tokens.encode import IGNORE_INDEX, EncodedRow

INDEX: Final = "tokens.json"
VERSION: Final = 1
MAX_NAMED_ROWS: Final = 5
"""Rows that messages name; the others are counted."""

Row = EncodedRow | EncodedAnswers


@dataclass
class FoundRows:
    """Rows in which something was found: their number, and the first ones, counted from 1, with that."""

    rows: int = 0
    first: list[tuple[int, str]] = field(default_factory=list)

    def add(self, row: int, found: str) -> None:
        """Count a row."""
        self.rows += 1
        if len(self.first) < MAX_NAMED_ROWS:
            self.first.append((row, found))


@dataclass
class SplitFacts:
    """Facts about the rows of a split that their tokens do not contain."""

    rows: int = 0
    learned_turns: int = 0
    """Assistant turns that are learned."""
    unlearned_turns: int = 0
    """Assistant turns of weight 1 that are not learned."""
    with_control_tokens: FoundRows = field(default_factory=FoundRows)
    """Rows with a control token of the tokenizer in their text, and the first one of each."""


@dataclass(frozen=True)
class RowColumns:
    """How encoded rows of one kind are written as columns."""

    names: tuple[str, ...]
    split: Callable[[Any], tuple[list[int], ...]]
    join: Callable[..., Row]
    lengths: Callable[..., tuple[Int64s, Int64s]]
    """Computes the tokens of each row, of the longer answer if there are two, and those of each prompt."""


def _spans(labels: Sequence[int]) -> list[int]:
    """Start and end of each run of labelled tokens, one after the other."""
    edges = np.flatnonzero(np.diff(np.array(labels) != IGNORE_INDEX, prepend=False, append=False))
    spans: list[int] = edges.tolist()
    return spans


def _conversation(input_ids: list[int], spans: list[int]) -> EncodedRow:
    labels = [IGNORE_INDEX] * len(input_ids)
    for begin, end in zip(spans[::2], spans[1::2], strict=True):
        labels[begin:end] = input_ids[begin:end]
    return EncodedRow(input_ids, labels)


def _conversation_lengths(input_ids: TokenColumn, spans: TokenColumn) -> tuple[Int64s, Int64s]:
    tokens = input_ids.lengths
    return tokens, spans.firsts(absent=tokens)


def _answer_lengths(
    prompt: TokenColumn, answer: TokenColumn, rejected: TokenColumn, _: TokenColumn
) -> tuple[Int64s, Int64s]:
    return prompt.lengths + np.maximum(answer.lengths, rejected.lengths), prompt.lengths


CONVERSATIONS: Final = RowColumns(
    ("input_ids", "learned_spans"),
    lambda row: (row.input_ids, _spans(row.labels)),
    _conversation,
    _conversation_lengths,
)
ANSWERS: Final = RowColumns(
    ("prompt", "answer", "rejected", "label"),
    lambda row: (row.prompt, row.answer, row.rejected or [], [row.label]),
    lambda prompt, answer, rejected, label: EncodedAnswers(prompt, answer, rejected or None, label == [1]),
    _answer_lengths,
)
KINDS: Final[Mapping[str, RowColumns]] = {"conversations": CONVERSATIONS, "answers": ANSWERS}


def kind_of(encoder: Encoder) -> str:
    """The kind of the rows that an encoder makes."""
    return "answers" if isinstance(encoder, AnswerEncoder) else "conversations"


class TokenRows(Sequence[Any]):
    """The rows of a split, made when they are read. Longer rows are truncated or left out, and so are those
    whose numbers, from 1, are in `without`."""

    def __init__(
        self,
        columns: RowColumns,
        folder: Path,
        max_length: int | None,
        *,
        drops_longer: bool,
        without: Collection[int] = (),
    ) -> None:
        self._make = columns.join
        self._columns = [TokenColumn(folder, name) for name in columns.names]
        self._max_length = max_length
        self._whole, self._prompts = columns.lengths(*self._columns)
        keep = np.ones(len(self._whole), dtype=bool)
        if max_length is not None and drops_longer:
            keep = self._whole <= max_length
        keep[[number - 1 for number in without]] = False
        self._kept = None if keep.all() else np.flatnonzero(keep)
        """Indices of the rows; None for all of them."""

    def __len__(self) -> int:
        return len(self._whole if self._kept is None else self._kept)

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...

    @override
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        at = index % len(self) if self._kept is None else self._kept[index]
        row = self._make(*(column[at] for column in self._columns))
        return row if self._max_length is None else row.truncate(self._max_length)

    @property
    def numbers(self) -> Sequence[int]:
        """Number of each row in its split, from 1."""
        return range(1, len(self) + 1) if self._kept is None else (self._kept + 1).tolist()

    @property
    def lengths(self) -> Int64s:
        """Number of tokens of each row."""
        whole = self._whole if self._kept is None else self._whole[self._kept]
        return whole if self._max_length is None else np.minimum(whole, self._max_length)

    @property
    def prompt_lengths(self) -> Int64s:
        """Number of tokens of each row before the first learned one."""
        return self._prompts if self._kept is None else self._prompts[self._kept]


class TokenFiles:
    """A folder of encoded rows. Raises OSError."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        index = json.loads((folder / INDEX).read_bytes())
        self._columns = KINDS[index["kind"]]
        self.facts: dict[SplitName, SplitFacts] = {
            split: SplitFacts(**facts | {"with_control_tokens": _found(facts["with_control_tokens"])})
            for split, facts in index["splits"].items()
        }

    def rows(
        self,
        split: SplitName,
        max_length: int | None = None,
        *,
        drops_longer: bool = False,
        without: Collection[int] = (),
    ) -> TokenRows:
        """The rows of a split, except those with the numbers in `without`.

        Rows with more than `max_length` tokens are truncated or left out.
        """
        folder = self._folder / split
        return TokenRows(self._columns, folder, max_length, drops_longer=drops_longer, without=without)


class TokenFileWriter:
    """Writes a folder of encoded rows. Raises OSError."""

    def __init__(self, folder: Path, kind: str) -> None:
        self._folder = folder
        self._kind = kind
        self._facts: dict[SplitName, SplitFacts] = {}

    @contextmanager
    def split(self, split: SplitName) -> Iterator[tuple[Callable[[Any], None], SplitFacts]]:
        """Yield the function that appends a row to the split, and the facts to complete."""
        folder = self._folder / split
        folder.mkdir()
        columns, facts = KINDS[self._kind], SplitFacts()
        with ExitStack() as stack:
            writers = [stack.enter_context(ColumnWriter(folder, name)) for name in columns.names]

            def append(row: Any) -> None:
                for writer, values in zip(writers, columns.split(row), strict=True):
                    writer.append(values)
                facts.rows += 1
                facts.learned_turns += row.learned_turns
                facts.unlearned_turns += row.unlearned_turns

            yield append, facts
        self._facts[split] = facts

    def finish(self) -> None:
        """Write the index, after all splits."""
        index = {
            "version": VERSION,
            "kind": self._kind,
            "splits": {split: asdict(facts) for split, facts in self._facts.items()},
        }
        (self._folder / INDEX).write_bytes(canonical.encode(index))


def _found(raw: Mapping[str, Any]) -> FoundRows:
    return FoundRows(raw["rows"], [(row, found) for row, found in raw["first"]])
