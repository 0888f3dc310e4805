# SPDX-License-Identifier: Apache-2.0
"""A table for a terminal and for a page of the documentation."""

from typing import NamedTuple

from rich.table import Table


class Sheet(NamedTuple):
    """A table as text."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def to_terminal(self) -> Table:
        table = Table(title=self.title, title_justify="left", title_style="bold")
        for number, column in enumerate(self.columns):
            table.add_column(column, justify="right" if number else "left", overflow="fold")
        for row in self.rows:
            table.add_row(*row)
        return table

    def to_markdown(self) -> str:
        ruler = ("---", *("---:",) * (len(self.columns) - 1))
        lines = (f"| {' | '.join(cells)} |" for cells in (self.columns, ruler, *self.rows))
        return f"**{self.title}**\n\n" + "\n".join(lines)
