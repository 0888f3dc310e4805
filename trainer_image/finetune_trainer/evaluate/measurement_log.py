# SPDX-License-Identifier: Apache-2.0
"""Measurements of earlier processes of the stage, and the digest that decides whether to reuse them.

- Rows: what each model answered to each row, and its values, are in a file of the run, from which an
  evaluation resumes. While the stage runs, the rows are in parts, each written at once. At the end, one file
  replaces them. Both begin with a header line; every other line is a `RowPrediction` as JSON.
- Tasks: the values of finished tasks are in the run's folder, in a file per task and subject. The stage does
  not run these tasks again.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Final, Literal

from pydantic import Field

from finetune_trainer.contract.configs import EvaluateConfig
from finetune_trainer.contract.metrics import Metric
from finetune_trainer.contract.own_metrics import EvaluationTask
from finetune_trainer.contract.vocabulary import Subject
from finetune_trainer.evaluate.json_lines import JsonLine, JsonLinesHeader, read_lines, to_content
from finetune_trainer.runtime.progress import Interval
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.store import RunFolder

if TYPE_CHECKING:
    from finetune_trainer.scoring.tasks.harness import HarnessTask


_NOT_PREDICTIONS: Final = frozenset(
    {
        "subjects",
        "prompted",
        "live",
        "gates",
        "checks",
        "judges",
        "probe",
        "sliceBy",
        "groupBy",
        "tasks",
        "trainingDataset",
        "shownDataset",
        "customMetrics",
        "batchSize",
        "stepTimeoutSeconds",
    }
)
"""Wire names of the fields that do not change the predictions of every subject."""


def subject_digest(config: EvaluateConfig, subject: Subject) -> str:
    """SHA-256 of all that determines the predictions of a subject, as 64 hexadecimal digits.

    A new champion changes that of Live only, so that the other subjects are not measured again.
    """
    left_out = config.not_work | _NOT_PREDICTIONS
    work = {name: value for name, value in config.to_dict().items() if name not in left_out}
    if subject == "Prompted":
        work["prompted"] = config.prompted.to_dict()
        if config.shown_dataset is not None:
            work["shownDataset"] = config.shown_dataset
    if subject == "Live" and config.live is not None:
        work["live"] = {name: value for name, value in config.live.to_dict().items() if name != "name"}
    return hashlib.sha256(json.dumps(work, sort_keys=True).encode()).hexdigest()


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


WITHOUT_TASKS: Final[frozenset[Subject]] = frozenset({"Prompted"})
"""A task has its own prompts, so Prompted would have the values of Base, which has the same weights."""


Values = Mapping[int, float]
"""The value of each row of a task, by its number from 1."""


class TaskLog:
    """The tasks of an evaluation, and which are finished."""

    def __init__(self, config: EvaluateConfig, tasks: "Sequence[HarnessTask]", folder: RunFolder) -> None:
        """Read what earlier processes finished. Raises StageFailure (STORE_UNAVAILABLE).

        Args:
            config: config of the stage.
            tasks: those of the config, in its order.
            folder: the stage's folder of the run.
        """
        self._config = config
        self._folder = folder
        self._tasks = dict(zip(config.tasks, tasks, strict=True))
        self._values: dict[tuple[Metric, Subject], Values] = {}
        for subject in config.subjects:
            for wanted in self._of(subject):
                found = self._read(wanted, subject)
                if found is not None:
                    self._values[wanted.metric_name, subject] = found

    @property
    def tasks(self) -> "Mapping[EvaluationTask, HarnessTask]":
        """The tasks, as the config names them."""
        return self._tasks

    def missing(self, subject: Subject) -> list[EvaluationTask]:
        """The tasks that the subject has not finished."""
        return [wanted for wanted in self._of(subject) if (wanted.metric_name, subject) not in self._values]

    def total_rows(self, subjects: Sequence[Subject]) -> int:
        """Number of rows of all tasks of these subjects."""
        return sum(self._tasks[wanted].rows for subject in subjects for wanted in self._of(subject))

    def done_rows(self, subjects: Sequence[Subject]) -> int:
        """Number of rows of finished tasks of these subjects."""
        return sum(map(len, self.of(subjects).values()))

    def of(self, subjects: Sequence[Subject]) -> dict[tuple[Metric, Subject], Values]:
        """The values of finished tasks of these subjects."""
        return {key: values for key, values in self._values.items() if key[1] in subjects}

    def add(self, wanted: EvaluationTask, subject: Subject, values: Values) -> None:
        """Save the values of a finished task. Raises StageFailure (STORE_UNAVAILABLE)."""
        content = {"digest": self._digest(wanted, subject), "values": list(values.values())}
        self._folder.write(_file(wanted, subject), json.dumps(content).encode())
        self._values[wanted.metric_name, subject] = values

    def _of(self, subject: Subject) -> Sequence[EvaluationTask]:
        return () if subject in WITHOUT_TASKS else self._config.tasks

    def _read(self, wanted: EvaluationTask, subject: Subject) -> Values | None:
        content = self._folder.read(_file(wanted, subject))
        if content is None:
            return None
        try:
            found = json.loads(content)
            values = [float(value) for value in found["values"]]
            is_same = found["digest"] == self._digest(wanted, subject)
        except (ValueError, KeyError, TypeError) as error:
            logger.warning("the values of the task %s are damaged and ignored: %s", wanted.name, error)
            return None
        return dict(enumerate(values, 1)) if is_same and len(values) == self._tasks[wanted].rows else None

    def _digest(self, wanted: EvaluationTask, subject: Subject) -> str:
        """SHA-256 of all that determines the values of a task."""
        parts = (subject_digest(self._config, subject), wanted.to_dict(), self._tasks[wanted].source.digest)
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _file(wanted: EvaluationTask, subject: Subject) -> str:
    return f"task-{wanted.name}-{subject.lower()}.json"
