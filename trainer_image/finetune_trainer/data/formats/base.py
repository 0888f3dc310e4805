# SPDX-License-Identifier: Apache-2.0
"""Base class of formats, which recognize records by hints and turn each into a row or issues.

The hints are the fields of a record, the names in the recipe, and the container.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from typing import Any, ClassVar, Final, Self

from finetune_trainer.contract.vocabulary import DataFormat, SplitName
from finetune_trainer.data.containers.base import ContainerName, Fields, TableName, table_of
from finetune_trainer.data.formats.conversations import read_system
from finetune_trainer.data.formats.field_meanings import (
    PRODIGY_ANSWER,
    PRODIGY_HASH,
    AnswerRatings,
    mapped_columns,
    prodigy_rejection,
)
from finetune_trainer.data.recipe import FieldNames, PromptTemplate, Recipe
from finetune_trainer.data.row_problems import (
    FORBIDDEN_CHARACTERS,
    Code,
    Issue,
    field_names,
    normalize_line_ends,
    quote_names,
    show_value,
    text_issue,
    type_name,
)
from finetune_trainer.rows import Row


class Match(IntEnum):
    """How strongly a record matches a format. The highest wins, then the order of the registry."""

    FIELDS = 1
    """Its fields have the usual names."""
    SHAPE = 2
    """Its fields have names and types that no other format has."""
    NAMED = 3
    """It has the fields that the recipe names."""
    EXPORT = 4
    """It is the export of a tool, as its fields show, whatever the recipe names."""


class FormatHints:
    """Field names to expect in one source: those in the recipe, else the usual ones."""

    def __init__(self, names: FieldNames) -> None:
        """Raises ValueError for an invalid template."""
        self.names = names
        self.ratings = AnswerRatings(names)
        self.prompt = (
            PromptTemplate.parse(names.template).columns if names.template else (names.prompt or "prompt",)
        )
        self.completion = names.completion or "completion"
        self.label = names.label or "label"
        self.messages = names.messages or "messages"
        self.table: TableName | None = None
        """Container of the records if it is a table; None if it is JSON."""
        self.answers = {names.chosen or "chosen", names.rejected or "rejected"}

    def within(self, container: ContainerName) -> Self:
        """The same clues for the records of a container."""
        clues = copy(self)
        clues.table = table_of(container)
        return clues

    def has_prompt(self, record: Fields) -> bool:
        """Whether the record has all fields of the prompt."""
        return record.keys() >= set(self.prompt)

    def has_completion(self, record: Fields) -> bool:
        """Whether the record has the completion."""
        return self.completion in record

    def has_plain_completion(self, record: Fields) -> bool:
        """Whether the record has the completion, and it is neither a list nor an object."""
        value: Any = record.get(self.completion)
        return self.completion in record and not isinstance(value, list | dict)


MAX_KEPT_CHARACTERS: Final = 256
"""Max length of a kept value. Longer ones are truncated."""


def kept_columns(record: Fields, names: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Names and values of these columns, by name, without those that are missing, null or empty.

    A number, a list or another value becomes its JSON, or its text if it has none. Never makes a row invalid:
    characters that a row must not have become U+FFFD.

    These columns of the source stay with a prepared row, as texts. A model never sees them.
    """
    values = ((name, _text(record.get(name))) for name in sorted(set(names)))
    return tuple((name, value) for name, value in values if value)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool | int | float | list | dict):
        value = json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
    text = FORBIDDEN_CHARACTERS.sub("\ufffd", normalize_line_ends(str(value)))
    return text if len(text) <= MAX_KEPT_CHARACTERS else text[: MAX_KEPT_CHARACTERS - 1] + "…"


Group = str | int
Issues = tuple[Issue, ...]

EMPTY: Final[tuple[object, ...]] = (None, "", [])
"""Values of a field that is absent, which a table or another row of the file may require."""

PAIR: Final = frozenset({"prompt", "completion"})
MAX_NAME_WORDS: Final = 4
MAX_NAME_CHARACTERS: Final = 60
"""Maximum length of what counts as the name of a column; a longer text in a header is probably a row."""

SPLIT_NAMES: dict[str, SplitName] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
"""Names of splits in columns and file names, in lower case; they match any case."""


@dataclass(slots=True)  # not frozen: creating it would take longer than reading it
class RawRow:
    """A valid row before cleaning."""

    row: Row
    group: Group | None = None
    """Group of the row, with split.groupBy."""
    split: SplitName | None = None
    """Split of the row, if the source sets it."""


class Format(ABC):
    """Recognizes and reads the records of one format."""

    name: ClassVar[DataFormat]
    title: ClassVar[str]
    """Name on the report's page."""
    table: ClassVar[TableName | None] = None
    """The only container of this format, if it has one; None if any container can hold it."""
    is_definite: ClassVar[bool] = True
    """Whether a recipe that sets this format leaves nothing to detect."""
    refuses_ratings: ClassVar[bool] = False
    """Whether every answer is learned, so that rows must not have a label that may rate the answer."""
    used: ClassVar[tuple[str, ...]] = ()
    """Fields of the format that are read, rejected or irrelevant, besides those that the recipe names."""
    usual_prompt: ClassVar[str] = "prompt"
    named: ClassVar[frozenset[str]] = frozenset()
    """Fields of FieldNames that the format uses; a warning reports all other fields."""

    def __init__(self, recipe: Recipe) -> None:
        """Raises ValueError for an invalid template."""
        self.recipe = recipe
        self.names = recipe.names
        self.template = PromptTemplate.parse(self.names.template) if self.names.template else None
        self.prompt_columns: tuple[str, ...] = (self.names.prompt or self.usual_prompt,)
        """Columns that make up the prompt."""
        if self.template is not None:
            self.prompt_columns = self.template.columns
        self.unused: dict[str, None] = {}
        """Fields that occurred and are not used, in the order of their occurrence."""
        self.combined = 0
        """Number of answers that combine several labels."""
        self._ratings = AnswerRatings(self.names)
        named = self.table_columns()
        # Also in a source that is only trained on, whose rows do not need the column.
        self._known = {*self.used, *named, *filter(None, [recipe.division.column])}
        self._reads_system = "system" not in named
        self._is_answer_read = PRODIGY_ANSWER in self._known

    @classmethod
    @abstractmethod
    def match(cls, record: Fields, clues: FormatHints, /) -> Match | None:
        """How strongly a record matches this format; None if it does not."""

    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """The columns that a table must have."""

    @abstractmethod
    def row(self, record: Fields) -> Row | Issues:
        """The row, or all its issues."""

    def data(self, record: Fields) -> Fields:
        """The part of the record with the team's own fields, including group and split."""
        return record

    def table_columns(self) -> tuple[str, ...]:
        """The columns that a table must have, including those of group, split and kept ones in the recipe."""
        recipe = self.recipe
        named = (recipe.division.group_by, recipe.split_column, *recipe.kept_columns)
        return (*self.columns(), *(name for name in named if name is not None))

    def header_issues(self, columns: Sequence[str]) -> Issues:
        """Issues about missing columns of a table."""
        absent = [name for name in self.table_columns() if name not in columns]
        in_template = [name for name in absent if self.template and name in self.template.columns]
        others = [name for name in absent if name not in in_template]
        found = []
        if others:
            found.append(
                Issue(
                    Code.HEADER,
                    f"the header has no column {quote_names(others)}, but {field_names(columns, 'others')}",
                    f"the column{'s' if len(others) > 1 else ''} {quote_names(others)}",
                    self._columns_advice(columns, others),
                )
            )
        if in_template:
            found.append(
                Issue(
                    Code.HEADER,
                    f"the header has no column {quote_names(in_template)}, which template names,"
                    f" but {field_names(columns, 'others')}",
                    f"the column{'s' if len(in_template) > 1 else ''} {quote_names(in_template)}",
                    "name the right columns in template",
                )
            )
        return tuple(found)

    def _columns_advice(self, columns: Sequence[str], absent: Sequence[str]) -> str:
        """What to do about absent columns."""
        if PAIR.issuperset(absent):
            if mapped := mapped_columns(columns):
                return f"set {mapped}"
            if len(columns) == 1:
                return "add a column: a row needs a prompt and the answer to learn"
            if any(map(is_sentence, columns)):
                return "add a first line that names the columns, such as prompt and completion"
        kept = " and keepColumns" if self.recipe.kept_columns else ""
        return f"name the right columns in columns (and split.groupBy{kept})"

    def read(self, record: Fields) -> RawRow | Issues:
        """The row with its group and split, or all its issues."""
        if PRODIGY_HASH in record and not self._is_answer_read:
            self._known.add(PRODIGY_ANSWER)
            if issue := prodigy_rejection(record):
                return (issue,)
        row = self.row(record)
        data = self.data(record)
        if not data.keys() <= self._known:
            self.note_unused(data)
        group_by, column = self.recipe.division.group_by, self.recipe.split_column
        group = None if group_by is None else self._group(data, group_by)
        split = None if column is None else self._split(data, column)
        if isinstance(row, Row) and self.recipe.kept_columns:
            row = replace(row, columns=kept_columns(data, self.recipe.kept_columns))
        if isinstance(row, Row) and not isinstance(group, Issue) and not isinstance(split, Issue):
            return RawRow(row, group, split)
        return (
            *(() if isinstance(row, Row) else row),
            *(found for found in (group, split) if isinstance(found, Issue)),
        )

    def rating_issue(self, record: Fields) -> Issue | None:
        """Why a record must not be read in this format without the user's decision: a field may rate its
        answer.
        """
        if not self.refuses_ratings:
            return None
        return self._ratings.issue(record, self.name if self.is_definite else None, self._is_read)

    def _is_read(self, name: str) -> bool:
        """Whether a field is read for training: a kept column is not."""
        return name in self._known and name not in self.unused and name not in self.recipe.kept_columns

    @property
    def ignored_names(self) -> tuple[str, ...]:
        """Names in the recipe that the format does not use."""
        return tuple(
            field.name
            for field in fields(self.names)
            if getattr(self.names, field.name) is not None and field.name not in self.named
        )

    def note_unused(self, record: Fields, prefix: str = "") -> None:
        """Note the unused fields of a record, without those that are null or empty."""
        for name, value in record.items():
            if value not in EMPTY and (path := prefix + name) not in self._known:
                self._known.add(path)
                self.unused[path] = None

    @property
    def known(self) -> frozenset[str]:
        """The fields that are used: those of the format and those found in the records."""
        return frozenset(self._known.difference(self.unused))

    def prompt(self, record: Fields, found: list[Issue]) -> str:
        """The prompt's text; "" if it is invalid, with an issue in `found`."""
        if self.template is None:
            return text(record, self.prompt_columns[0], found)
        filled = self.template.fill(record)
        if isinstance(filled, str):
            return normalize_line_ends(filled)
        found += filled
        return ""

    def system(self, record: Fields, found: list[Issue]) -> str:
        """The text of the field `system`, unless the recipe uses the field otherwise."""
        return read_system(record, found) if self._reads_system else ""

    def _group(self, record: Fields, name: str) -> Group | Issue:
        value = record.get(name)
        if isinstance(value, str) and value.strip():
            issue = text_issue(name, value)
            return normalize_line_ends(value) if issue is None else issue
        if isinstance(value, int):
            return value
        state = "missing" if name not in record else "empty" if value == "" else type_name(value)
        return Issue(
            Code.GROUP,
            f"{name}, which split.groupBy names, is {state}",
            "text or a whole number",
            f"fill {name} in, or remove split.groupBy",
            column=name,
        )

    def _split(self, record: Fields, name: str) -> SplitName | Issue:
        value = record.get(name)
        split = SPLIT_NAMES.get(value.strip().lower()) if isinstance(value, str) else None
        if split is not None:
            return split
        state = "missing" if name not in record else show_value(value)
        return Issue(
            Code.SPLIT,
            f"{name}, which split.column names, is {state}",
            "train, validation or test",
            f"correct {name}, or remove split.column",
            column=name,
        )


def is_sentence(name: str) -> bool:
    """Whether the name of a column looks like a text of a row, as in a table without a header."""
    return len(name.split()) > MAX_NAME_WORDS or len(name) > MAX_NAME_CHARACTERS


def missing_field_issue(record: Fields, name: str) -> Issue:
    """The issue of a missing field."""
    content = f"it has {field_names(record)}" if record else "it is an empty object"
    mapped = mapped_columns(record) if name in PAIR else None
    return Issue(
        Code.FIELD_MISSING,
        f'"{name}" is missing ({content})',
        f'the field "{name}"',
        f"add it, or set {mapped}" if mapped else "add it, or map another field in columns",
        column=name,
    )


def text(record: Fields, name: str, found: list[Issue]) -> str:
    """A field's text; "" if it is invalid, with an issue in `found`."""
    issue = text_issue(name, record[name]) if name in record else missing_field_issue(record, name)
    if issue is None:
        return normalize_line_ends(record[name])
    found.append(issue)
    return ""
