# SPDX-License-Identifier: Apache-2.0
"""docs/coming-from.md: names of other software and the fields that have their meaning."""

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from finetune_operator.api.foreign_names import FOREIGN_NAMES, ForeignName

TEMPLATE: Final = Path(__file__).with_suffix(".md")


def coming_page() -> str:
    """The page: a heading and a table for each software."""
    tables = "\n\n".join(_table(software, names) for software, names in FOREIGN_NAMES.items())
    return TEMPLATE.read_text() % {"tables": tables}


def _table(software: str, names: Iterable[ForeignName]) -> str:
    head = (f"## {software}", "", f"| {software} | kind | field | |", "|---|---|---|---|")
    return "\n".join([*head, *map(_row, names)])


def _row(name: ForeignName) -> str:
    field = f"`{name.path}`" if name.path else "—"
    return f"| `{name.name}` | {name.kind or '—'} | {field} | {name.difference} |"
