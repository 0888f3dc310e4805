# SPDX-License-Identifier: Apache-2.0
"""Log files of problems and of similar rows, in the run's folder."""

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
"""Max size of one log. A longer one is not useful, and other runs share the store."""

logger = logging.getLogger(__name__)


class LineLog:
    """Write records to a file in a run's folder, one per line, up to `MAX_BYTES`.

    Replaces the log of an earlier attempt. Without records there is no file.
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
            # Mode x never follows a link that another writer to the store has created.
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
        """Write one record, unless the log is full."""
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
            logger.warning("%s has only the first %d records", self.uri, self._count)


class ProblemLog(LineLog):
    """Every problem, in `problems.jsonl`."""

    def __init__(self, folder: RunFolder) -> None:
        super().__init__(folder, PROBLEMS_NAME)

    def add(self, problem: RowProblem) -> None:
        """Write one problem."""
        self.write(problem_record(problem))


class AlikeLog(LineLog):
    """Every pair of similar rows, in `alike.jsonl`: the removed or reported row and the other one."""

    def __init__(self, folder: RunFolder) -> None:
        super().__init__(folder, ALIKE_NAME)

    def add(self, pair: DuplicatePair) -> None:
        """Write one pair."""
        self.write(duplicate_record(pair))
