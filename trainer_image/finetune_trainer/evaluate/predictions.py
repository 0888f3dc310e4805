# SPDX-License-Identifier: Apache-2.0
"""What each model answered to each row, and its values: a file of the run, which an evaluation resumes from.

While the stage runs, the rows are in parts, each written at once. At the end, one file replaces them. Both
begin with a header line; every other line is a `RowPrediction` as JSON.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Final, Literal

from pydantic import Field

from finetune_trainer.contract.configs import EvaluateConfig
from finetune_trainer.contract.vocabulary import Subject
from finetune_trainer.evaluate.jsonlines import JsonLine, JsonLinesHeader, read_lines, to_content
from finetune_trainer.evaluate.subjects.subjectdigest import subject_digest
from finetune_trainer.runtime.progress import Interval
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.store import RunFolder

FILE: Final = "predictions.jsonl"
FORMAT: Final = 2
"""Version of the lines, and of how rows are measured. Rows of another version are measured again."""
FLUSH_SECONDS: Final = 10.0
"""A killed process loses the rows that it measured in this time."""

logger = logging.getLogger(__name__)


class RowPrediction(JsonLine):
    """One row, measured with one model."""

    subject: Subject
    row: int
    """Number of the row in the evaluated split, from 1."""
    text: str | None = None
    """The generated answer; None if no metric needs one."""
    tokens: int | None = None
    """Number of generated tokens, without the one that ends the answer."""
    finish_reason: Literal["stop", "length"] | None = None
    choice: int | None = None
    """Index of the most likely label; None if no metric needs it, or no label fits into the context."""
    not_finite: Literal[True] | None = None
    """Set if the answer ended because the model predicted NaN or infinity, or did so for a label."""
    seconds: float | None = None
    """Time of the answers of its batch, divided by the rows of the batch."""
    metrics: dict[str, float]
    """The row's value of each metric in which the row counts."""


class _FileHeader(JsonLinesHeader):
    format: Annotated[int, Field(ge=1)] = FORMAT
    subjects: dict[Subject, str]
    """Digest of what determines the rows of each subject."""
    batch_size: Annotated[int, Field(ge=1)]
    """Rows per batch from the last of these rows on."""
    engine: str | None = None
    """Version of the engine that generated the answers; None: the trainer did."""


class PredictionLog:
    """The rows that are measured, in the run's folder. Reading and flushing leave whole batches."""

    def __init__(self, folder: RunFolder, config: EvaluateConfig, engine: str | None = None) -> None:
        """Read the rows of earlier processes. Raises StageFailure (STORE_UNAVAILABLE), Preempted.

        Args:
            folder: folder of the stage.
            config: config of the stage.
            engine: version of the engine that has answered in this pod; None if none has.
        """
        self._folder = folder
        self._digests = {subject: subject_digest(config, subject) for subject in config.subjects}
        self._interval = Interval(FLUSH_SECONDS)
        self._rows: list[RowPrediction] = []
        self._part_ends = [0]
        """Number of rows up to the end of the file of an earlier evaluation, and of each part after it.

        A signal may arrive between any two changes.
        """
        self._complete = False
        self.batch_size = config.batch_size
        self.engine = engine
        """Version of the engine that generated the answers; None: the trainer did."""
        self._read()

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def uri(self) -> str:
        """Location of the file with all rows, which `finish` writes."""
        return f"{self._folder.uri}/{FILE}"

    def of(self, subject: Subject) -> dict[int, RowPrediction]:
        """The measured rows of a model, by number."""
        return {row.row: row for row in self._rows if row.subject == subject}

    @contextmanager
    def saved(self) -> Iterator[None]:
        """Save the rows when the block ends, also by an error or a signal."""
        try:
            yield
        finally:
            self._flush()

    def add(self, rows: Sequence[RowPrediction]) -> None:
        """Add the rows of a batch; saves now and then."""
        self._rows.extend(rows)
        if self._interval.passed():
            self._flush()
            self._interval.begin()

    def drop(self, subject: Subject) -> None:
        """Leave the rows of a model out of the complete file. Call `finish` next."""
        self._rows = [row for row in self._rows if row.subject != subject]
        self._digests.pop(subject, None)

    def finish(self) -> None:
        """Replace the parts by one file. Raises StageFailure (STORE_UNAVAILABLE)."""
        if self._complete:
            return
        self._folder.write(FILE, self._content(self._rows))
        self._complete = True
        for number in range(1, len(self._part_ends)):
            self._folder.remove(_part(number))

    def _flush(self) -> None:
        if self._complete:
            return
        saved = self._part_ends[-1]
        rows = self._rows[saved:]
        if not rows:
            return
        try:
            self._folder.write(_part(len(self._part_ends)), self._content(rows))
        except StageFailure as failure:
            logger.warning("measured rows are saved later: %s", failure.message)
            return
        self._part_ends.append(saved + len(rows))

    def _content(self, rows: Sequence[RowPrediction]) -> bytes:
        header = _FileHeader(subjects=self._digests, batch_size=self.batch_size, engine=self.engine)
        return to_content((header, *rows))

    def _read(self) -> None:
        """Read the file of a complete evaluation, and the parts of one that did not end."""
        whole = self._read_file(FILE)
        self._complete = whole is not None and whole.subjects == self._digests
        if self._complete:
            # Left by a process that was killed after it wrote the file.
            self._remove_parts(1)
            return
        self._part_ends = [len(self._rows)]
        while self._read_file(_part(len(self._part_ends))) is not None:
            self._part_ends.append(len(self._rows))
        # Parts of another format, or behind a damaged one: they would be read after new parts.
        self._remove_parts(len(self._part_ends))

    def _remove_parts(self, number: int) -> None:
        while self._folder.read(_part(number)) is not None:
            self._folder.remove(_part(number))
            number += 1

    def _read_file(self, name: str) -> "_FileHeader | None":
        """Add the rows of a file that are valid and not read yet. Returns its header; None if unreadable."""
        found = read_lines(self._folder, name, _FileHeader, RowPrediction, FORMAT)
        if found is None:
            return None
        header, rows = found
        self.batch_size = header.batch_size
        self.engine = self.engine or header.engine
        known = {(row.subject, row.row) for row in self._rows}
        self._rows += [
            row
            for row in rows
            if row.subject in self._digests
            and header.subjects.get(row.subject) == self._digests[row.subject]
            and (row.subject, row.row) not in known
        ]
        return header


def _part(number: int) -> str:
    return f"predictions-{number:05}.jsonl"
