"""From a record to a row, or to what is wrong with it; the same for every format."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

from finetune_trainer.contract.vocabulary import DataFormat, SplitName
from finetune_trainer.data.containers.base import Fields, TableName
from finetune_trainer.data.formats.clues import Clues, Match
from finetune_trainer.data.options import Recipe
from finetune_trainer.data.prompttemplate import PromptTemplate
from finetune_trainer.data.rowproblems import Code, Issue
from finetune_trainer.data.textchecks import (
    field_names,
    listed,
    normal_line_ends,
    shown,
    text_issue,
    type_name,
)
from finetune_trainer.rows import Row

Group = str | int
Issues = tuple[Issue, ...]

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
"""What teams call their splits; of files' names too. Capital letters count as small ones."""


@dataclass(slots=True)  # not frozen, which would take longer to make than to read
class RawRow:
    """A valid row as it came, before any cleaning."""

    row: Row
    group: Group | None = None
    """Where the division is by groups."""
    split: SplitName | None = None
    """Where the rows say it themselves."""


class Format(ABC):
    """Recognises and reads the records of one format."""

    name: ClassVar[DataFormat]
    title: ClassVar[str]
    """What the report's page calls it."""
    table: ClassVar[TableName | None] = None
    """The only container that holds this format, and its name; None where any container may hold it."""
    is_definite: ClassVar[bool] = True
    """Whether a recipe that names the format leaves nothing to detect."""
    refuses_ratings: ClassVar[bool] = False
    """Whether every answer is learned, so that rows must have no label that may judge the answer."""
    used: ClassVar[tuple[str, ...]] = ()
    """Fields of the format itself that are read, refused or of no interest, not those that a recipe names."""
    usual_prompt: ClassVar[str] = "prompt"
    named: ClassVar[frozenset[str]] = frozenset()
    """Fields of FieldNames that have a meaning here; those of others are told to have none."""

    def __init__(self, recipe: Recipe) -> None:
        """Raises ValueError for a template that is none."""
        self.recipe = recipe
        self.names = recipe.names
        self.template = PromptTemplate.parse(self.names.template) if self.names.template else None
        self.prompt_columns: tuple[str, ...] = (self.names.prompt or self.usual_prompt,)
        """What the prompt is made of."""
        if self.template is not None:
            self.prompt_columns = self.template.columns
        self.unused: dict[str, None] = {}
        """Fields that were seen and are not used, in the order of their coming."""
        self._known = {*self.used, *self.table_columns()}

    @classmethod
    @abstractmethod
    def match(cls, record: Fields, clues: Clues, /) -> Match | None:
        """How strongly a record suggests this format; None: not at all."""

    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """The columns that a table must have."""

    @abstractmethod
    def row(self, record: Fields) -> Row | Issues:
        """The row, or all that is wrong with it."""

    def data(self, record: Fields) -> Fields:
        """The fields that the team filled, where a format has them apart; group and split are there."""
        return record

    def table_columns(self) -> tuple[str, ...]:
        """The columns that a table must have, with those that the recipe names for groups and splits."""
        division = self.recipe.division
        return (*self.columns(), *(name for name in (division.group_by, division.column) if name is not None))

    def header_issues(self, columns: Sequence[str]) -> Issues:
        """What a table's columns lack."""
        absent = [name for name in self.table_columns() if name not in columns]
        in_template = [name for name in absent if self.template and name in self.template.columns]
        others = [name for name in absent if name not in in_template]
        found = []
        if others:
            found.append(
                Issue(
                    Code.HEADER,
                    f"the header has no column {listed(others)}, but {field_names(columns, 'others')}",
                    f"the column{'s' if len(others) > 1 else ''} {listed(others)}",
                    "name the right columns in columns (and split.groupBy)",
                )
            )
        if in_template:
            found.append(
                Issue(
                    Code.HEADER,
                    f"the header has no column {listed(in_template)}, which template names,"
                    f" but {field_names(columns, 'others')}",
                    f"the column{'s' if len(in_template) > 1 else ''} {listed(in_template)}",
                    "name the right columns in template",
                )
            )
        return tuple(found)

    def read(self, record: Fields) -> RawRow | Issues:
        """The row with its group and split, or all that is wrong with it."""
        row = self.row(record)
        data = self.data(record)
        if not data.keys() <= self._known:
            self.note_unused(data)
        division = self.recipe.division
        group = None if division.group_by is None else self._group(data, division.group_by)
        split = None if division.column is None else self._split(data, division.column)
        if isinstance(row, Row) and not isinstance(group, Issue) and not isinstance(split, Issue):
            return RawRow(row, group, split)
        return (
            *(() if isinstance(row, Row) else row),
            *(found for found in (group, split) if isinstance(found, Issue)),
        )

    @property
    def ignored_names(self) -> tuple[str, ...]:
        """What the recipe names in vain."""
        return tuple(
            field.name
            for field in fields(self.names)
            if getattr(self.names, field.name) is not None and field.name not in self.named
        )

    def note_unused(self, record: Fields, prefix: str = "") -> None:
        """Remember the fields that are not known; null says nothing, and is not counted."""
        for name, value in record.items():
            if value is not None and (path := prefix + name) not in self._known:
                self._known.add(path)
                self.unused[path] = None

    @property
    def known(self) -> frozenset[str]:
        """The fields that are known: of the format, or from the records that were read; not those unused."""
        return frozenset(self._known.difference(self.unused))

    def prompt(self, record: Fields, found: list[Issue]) -> str:
        """The prompt's text, or "" and what is wrong with it."""
        if self.template is None:
            return text(record, self.prompt_columns[0], found)
        filled = self.template.fill(record)
        if isinstance(filled, str):
            return normal_line_ends(filled)
        found += filled
        return ""

    def _group(self, record: Fields, name: str) -> Group | Issue:
        value = record.get(name)
        if isinstance(value, str) and value.strip():
            issue = text_issue(name, value)
            return normal_line_ends(value) if issue is None else issue
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
        state = "missing" if name not in record else shown(value)
        return Issue(
            Code.SPLIT,
            f"{name}, which split.column names, is {state}",
            "train, validation or test",
            f"correct {name}, or remove split.column",
            column=name,
        )


def missing(record: Fields, name: str) -> Issue:
    """The issue of a field that is not there."""
    there = f"it has {field_names(record)}" if record else "it is an empty object"
    return Issue(
        Code.FIELD_MISSING,
        f'"{name}" is missing ({there})',
        f'the field "{name}"',
        "add it, or map another field in columns",
        column=name,
    )


def text(record: Fields, name: str, found: list[Issue]) -> str:
    """A field's text; "" where it has none, and what is wrong with it."""
    issue = text_issue(name, record[name]) if name in record else missing(record, name)
    if issue is None:
        return normal_line_ends(record[name])
    found.append(issue)
    return ""
