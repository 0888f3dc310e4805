# SPDX-License-Identifier: Apache-2.0
"""Encoded rows on disk: made once by preflight, and mapped into memory by every process that trains.

The folder has `tokens.json`, and a folder per split with the columns of its rows. Rows are not truncated. A
column is a list of int32 per row, in two files, both little-endian: `name.int32` with the values of all rows,
and `name.bounds.int64` with the number of values before each row and after the last.

The store has the folder under the name of the encoding: equal names mean equal tokens for equal rows.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Self, overload

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from finetune_trainer import canonical_json
from finetune_trainer.contract.vocabulary import SplitName
from finetune_trainer.tokens.encoding import IGNORE_INDEX, AnswerEncoder, EncodedAnswers, EncodedRow, Encoder

VALUE: Final = np.dtype("<i4")
BOUND: Final = np.dtype("<i8")
BUFFER_BYTES: Final = 1 << 16

Int32s = NDArray[np.int32]
Int64s = NDArray[np.int64]


class ColumnWriter:
    """Writes a column; complete when the block ends. Raises OSError."""

    def __init__(self, folder: Path, name: str) -> None:
        self._paths = _paths(folder, name)
        self._total = 0

    def __enter__(self) -> Self:
        self._values, self._bounds = (path.open("wb", BUFFER_BYTES) for path in self._paths)
        _write(self._bounds, [0], BOUND)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._values.close()
        self._bounds.close()

    def append(self, values: Sequence[int]) -> None:
        """Append the values of the next row."""
        _write(self._values, values, VALUE)
        self._total += len(values)
        _write(self._bounds, [self._total], BOUND)


class TokenColumn:
    """A column whose pages are read from disk when they are used. Raises OSError."""

    def __init__(self, folder: Path, name: str) -> None:
        values, bounds = _paths(folder, name)
        self._values: Int32s = _mapped(values, VALUE)
        self._bounds: Int64s = _mapped(bounds, BOUND)

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __getitem__(self, row: int) -> list[int]:
        values: list[int] = self._values[self._bounds[row] : self._bounds[row + 1]].tolist()
        return values

    @property
    def lengths(self) -> Int64s:
        """Number of values of each row."""
        return np.diff(self._bounds)

    def firsts(self, absent: Int64s) -> Int64s:
        """The first value of each row; that of `absent` for a row without values."""
        found = absent.copy()
        rows = np.flatnonzero(self.lengths)
        found[rows] = self._values[self._bounds[rows]]
        return found


def _paths(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / f"{name}.int32", folder / f"{name}.bounds.int64"


def _write(file: BinaryIO, values: Sequence[int], dtype: np.dtype[Any]) -> None:
    file.write(np.array(values, dtype).tobytes())


def _mapped(path: Path, dtype: np.dtype[Any]) -> NDArray[Any]:
    # An empty file cannot be mapped.
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.empty(0, dtype)


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


def row_kind(encoder: Encoder) -> str:
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
        (self._folder / INDEX).write_bytes(canonical_json.encode(index))


def _found(raw: Mapping[str, Any]) -> FoundRows:
    return FoundRows(raw["rows"], [(row, found) for row, found in raw["first"]])


ENCODING_VERSION: Final = 2
"""Raise it with every change of `finetune_trainer.tokens` that changes the tokens or labels of a row."""
LIBRARIES: Final = ("tokenizers", "transformers", "trl")
"""Libraries that render or tokenize rows, or that have training templates."""


def encoding_name(encoder: Encoder) -> str:
    """SHA-256 of everything that the tokens depend on except the rows, as 64 hexadecimal digits.

    It is the same on each day, although some templates write the date of today.
    """
    tokenizer = encoder.tokenizer
    backend: str = tokenizer.backend_tokenizer.to_str()
    facts = {
        "versions": [VERSION, ENCODING_VERSION, *map(version, LIBRARIES)],
        "kind": row_kind(encoder),
        "tokenizer": hashlib.sha256(backend.encode()).hexdigest(),
        "special_tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "template": tokenizer.chat_template,
        "arguments": dict(encoder.chat_template_kwargs),
    }
    return hashlib.sha256(canonical_json.encode(facts)).hexdigest()
