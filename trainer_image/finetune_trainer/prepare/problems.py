"""What is wrong with rows: said once a place, with what was expected and what to do."""

import io
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from finetune_trainer import canonical
from finetune_trainer.store import RunFolder
from finetune_trainer.store.failures import reachable

PROBLEMS_NAME: Final = "problems.jsonl"
SHOWN_PROBLEMS: Final = 10
SHOWN_CHARACTERS: Final = 200


@dataclass(frozen=True, slots=True)
class Issue:
    """One thing that is wrong."""

    what: str
    expected: str
    fix: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where it is; rows and lines count from 1.

    In JSON Lines a row's number is its line. In CSV it counts the records below the header, and `line` is
    the line where the record begins. Without a row the whole file is meant. `file` is set where the source
    has several.
    """

    file: str | None = None
    row: int | None = None
    line: int | None = None

    def __str__(self) -> str:
        row = None if self.row is None else f"row {self.row}"
        if row is not None and self.line is not None and self.line != self.row:
            row = f"{row} (line {self.line})"
        return " ".join(part for part in (self.file, row) if part is not None) or "file"


@dataclass(frozen=True, slots=True)
class Invalid:
    """A row, or a whole file, that cannot be used."""

    place: Place
    issues: tuple[Issue, ...]
    ends_file: bool = False
    """Nothing after this place can be read; dropping rows does not help."""


class ProblemLog:
    """Writes every problem to `problems.jsonl` in a run's folder, and remembers the first few.

    A log of an earlier try is replaced; without problems there is no file.
    Raises StageFailure (STORE_UNAVAILABLE).
    """

    def __init__(self, folder: RunFolder) -> None:
        self.uri = f"{folder.uri}/{PROBLEMS_NAME}"
        self._folder = folder
        self._path = folder.path / PROBLEMS_NAME
        self.count = 0
        self.shown: list[str] = []
        self._temporary = folder.path / f".{PROBLEMS_NAME}.part"
        self._file: io.TextIOWrapper | None = None

    def __enter__(self) -> Self:
        self._folder.remove(PROBLEMS_NAME)
        with reachable(self._path):
            self._file = self._temporary.open("w", encoding="utf-8", newline="\n")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is None:
            return
        with reachable(self._path):
            self._file.close()
            if self.count:
                self._temporary.replace(self._path)
            else:
                self._temporary.unlink()
        if self.count:
            self._folder.keep(PROBLEMS_NAME)

    def add(self, invalid: Invalid) -> None:
        """Note all issues of one place."""
        if self._file is None:
            raise ValueError("the log is not open")
        for issue in invalid.issues:
            self.count += 1
            if len(self.shown) < SHOWN_PROBLEMS:
                self.shown.append(_shown(invalid.place, issue))
            line = {
                "file": invalid.place.file,
                "row": invalid.place.row,
                "line": invalid.place.line,
                "problem": issue.what,
                "expected": issue.expected,
                "fix": issue.fix,
            }
            with reachable(self._path):
                self._file.write(canonical.text(line) + "\n")


def _shown(place: Place, issue: Issue) -> str:
    text = f"{place}: {issue.what}; expected {issue.expected}; {issue.fix}"
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"
