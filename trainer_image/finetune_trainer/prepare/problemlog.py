"""Where problems are kept: every one in a file of the run's folder, and the first few at hand."""

import io
from types import TracebackType
from typing import Final, Self

from finetune_trainer import canonical
from finetune_trainer.data.report.document import problem_record
from finetune_trainer.data.result import Problem
from finetune_trainer.store import RunFolder

PROBLEMS_NAME: Final = "problems.jsonl"


class ProblemLog:
    """Writes every problem to `problems.jsonl` in a run's folder.

    A log of an earlier try is replaced; without problems there is no file.
    Raises StageFailure (STORE_UNAVAILABLE).
    """

    def __init__(self, folder: RunFolder) -> None:
        self.uri = f"{folder.uri}/{PROBLEMS_NAME}"
        self._folder = folder
        self._path = folder.path / PROBLEMS_NAME
        self._count = 0
        self._temporary = folder.path / f".{PROBLEMS_NAME}.part"
        self._file: io.TextIOWrapper | None = None

    def __enter__(self) -> Self:
        self._folder.remove(PROBLEMS_NAME)
        with self._folder.mount.reachable(self._path):
            self._temporary.unlink(missing_ok=True)
            # Never through a link that somebody has put there.
            self._file = self._temporary.open("x", encoding="utf-8", newline="\n")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is None:
            return
        with self._folder.mount.reachable(self._path):
            self._file.close()
            if self._count:
                self._temporary.replace(self._path)
            else:
                self._temporary.unlink()
        if self._count:
            self._folder.keep(PROBLEMS_NAME)

    def add(self, problem: Problem) -> None:
        """Note one."""
        if self._file is None:
            raise ValueError("the log is not open")
        self._count += 1
        with self._folder.mount.reachable(self._path):
            self._file.write(canonical.text(problem_record(problem)) + "\n")
