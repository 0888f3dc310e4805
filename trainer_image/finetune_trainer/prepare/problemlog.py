"""Where problems, and rows that are alike, are kept: in files of the run's folder."""

import io
import logging
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, Self

from finetune_trainer import canonical
from finetune_trainer.data.result import DuplicatePair, RowProblem
from finetune_trainer.report.document import duplicate_record, problem_record
from finetune_trainer.store import RunFolder

PROBLEMS_NAME: Final = "problems.jsonl"
ALIKE_NAME: Final = "alike.jsonl"
MAX_BYTES: Final = 64 << 20
"""Of one log: nobody reads more, and the store is used by others too."""

logger = logging.getLogger(__name__)


class LineLog:
    """Writes records to a file in a run's folder, one a line, as long as these are not too many.

    A log of an earlier try is replaced; without records there is no file.
    Raises StageFailure (STORE_UNAVAILABLE).
    """

    def __init__(self, folder: RunFolder, name: str) -> None:
        self.uri = f"{folder.uri}/{name}"
        self._folder = folder
        self._name = name
        self._path = folder.path / name
        self._count = 0
        self._bytes = 0
        self._temporary = folder.path / f".{name}.part"
        self._file: io.TextIOWrapper | None = None

    def __enter__(self) -> Self:
        self._folder.remove(self._name)
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
            self._folder.keep(self._name)

    def write(self, record: Mapping[str, Any]) -> None:
        """Note one."""
        if self._file is None:
            raise ValueError("the log is not open")
        self._count += 1
        if self._bytes > MAX_BYTES:
            return
        line = canonical.text(record) + "\n"
        self._bytes += len(line.encode())
        with self._folder.mount.reachable(self._path):
            self._file.write(line)
        if self._bytes > MAX_BYTES:
            logger.warning("%s has the first %d records and no more", self.uri, self._count)


class ProblemLog(LineLog):
    """Every problem, in `problems.jsonl`."""

    def __init__(self, folder: RunFolder) -> None:
        super().__init__(folder, PROBLEMS_NAME)

    def add(self, problem: RowProblem) -> None:
        """Note one."""
        self.write(problem_record(problem))


class AlikeLog(LineLog):
    """Every two rows that are alike, in `alike.jsonl`: which row is left out, or told of, and for which."""

    def __init__(self, folder: RunFolder) -> None:
        super().__init__(folder, ALIKE_NAME)

    def add(self, pair: DuplicatePair) -> None:
        """Note one."""
        self.write(duplicate_record(pair))
