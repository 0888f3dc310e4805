"""The files of a dataset: one a split, one row a line."""

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from finetune_trainer.rows import SPLIT_FILES, Row, SplitName


class SplitWriter:
    """Writes rows to the files of their splits, all of which exist in the end. Raises OSError."""

    def __init__(self, folder: Path) -> None:
        self.rows: dict[SplitName, int] = dict.fromkeys(SPLIT_FILES, 0)
        self._stack = ExitStack()
        self._files = {
            name: self._stack.enter_context((folder / file).open("w", encoding="utf-8", newline="\n"))
            for name, file in SPLIT_FILES.items()
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def write(self, split: SplitName, row: Row) -> None:
        """Append one row."""
        self._files[split].write(row.to_line() + "\n")
        self.rows[split] += 1
