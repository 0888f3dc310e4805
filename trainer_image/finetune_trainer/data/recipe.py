# SPDX-License-Identifier: Apache-2.0
"""Settings of a preparation, all of which enter a version's preparation digest.

The prompt template is a text with `{column}` for each column to insert.
"""

import json
from dataclasses import dataclass, field
from string import Formatter
from typing import Any, Self

from finetune_trainer.contract.dataset import Checks, Cleaning, Columns, Split
from finetune_trainer.contract.vocabulary import RULE_VERSION, DataFormat, SourceSplits
from finetune_trainer.data.row_problems import Code, Issue, field_names, quote_names, text_issue, type_name


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldNames(Columns):
    """Names of the fields in the source files."""

    template: str | None = None
    """Text with `{column}` for each column to insert; replaces the prompt column."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """All settings for the rows of one source. The names of its fields enter the digest: they never change.

    The recipes of several sources differ only in `format`, `names` and `splits`.
    """

    format: DataFormat | None = None
    """None: detected by content."""
    names: FieldNames = field(default_factory=FieldNames)
    splits: SourceSplits = "All"
    """TrainOnly: every row is in the train split, whatever `division` says."""
    division: Split = field(default_factory=Split)
    cleaning: Cleaning = field(default_factory=Cleaning)
    checks: Checks = field(default_factory=Checks)
    kept_columns: tuple[str, ...] = ()
    """Columns of the source to keep with each row."""
    rule_version: int = RULE_VERSION
    """One of `RULE_VERSIONS`. Code whose result differs between versions compares with this number."""

    @property
    def split_column(self) -> str | None:
        """Column that names the split of each row, if any."""
        return self.division.column if self.splits == "All" else None

    @property
    def splits_by_files(self) -> bool:
        """Whether the file names give the split."""
        return self.division.from_files and self.splits == "All"


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """Texts, each with the column that follows it; `{{` and `}}` are literal braces."""

    parts: tuple[tuple[str, str | None], ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a template. Raises ValueError with the error and its fix."""
        try:
            found = list(Formatter().parse(text))
        except ValueError as error:
            raise ValueError(f"{error}; write {{{{ and }}}} for literal braces") from error
        for _, name, form, conversion in found:
            if name is None:
                continue
            if form or conversion or any(mark in name for mark in ".[]"):
                end = (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
                raise ValueError(f"{{{name}{end}}} is more than a column name; write {{column}} only")
            if not name.strip() or name.isdigit():
                raise ValueError(f"{{{name}}} names no column; write the column's name")
        if not any(name is not None for _, name, _, _ in found):
            raise ValueError("it names no column; write {column} where the text of a column belongs")
        return cls(tuple((literal, name) for literal, name, _, _ in found))

    @property
    def columns(self) -> tuple[str, ...]:
        """Each column once, in order."""
        return tuple(dict.fromkeys(name for _, name in self.parts if name is not None))

    def fill(self, fields: dict[str, Any]) -> str | tuple[Issue, ...]:
        """The text for one record, or its issues. Some of the columns may be empty or null, but not all."""
        found = [issue for name in self.columns if (issue := _issue(fields, name))]
        if found:
            return tuple(found)
        values = {name: _text(fields[name]) for name in self.columns}
        if not any(value.strip() for value in values.values()):
            issue = Issue(
                Code.FIELD_EMPTY,
                f"{quote_names(values)}, which template names, {'are all' if len(values) > 1 else 'is'} "
                "empty",
                "text",
                "fill one in, or remove the row",
                column=self.columns[0],
            )
            return (issue,)
        return "".join(text if name is None else text + values[name] for text, name in self.parts)


def _text(value: Any) -> str:
    """A value as in JSON; a text without quotes."""
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


def _issue(fields: dict[str, Any], name: str) -> Issue | None:
    if name not in fields:
        return Issue(
            Code.FIELD_MISSING,
            f'"{name}", which template names, is missing (it has {field_names(fields)})',
            f'the field "{name}"',
            "add it, or correct template",
            column=name,
        )
    value = fields[name]
    if value is None or isinstance(value, bool | int | float):
        return None
    if not isinstance(value, str):
        return Issue(
            Code.FIELD_TYPE,
            f"{name}, which template names, is {type_name(value)}",
            "text, a number, or true or false",
            "name another column in template",
            column=name,
        )
    return text_issue(name, value) if value.strip() else None
