# SPDX-License-Identifier: Apache-2.0
"""The values of finished tasks in the run's folder: a file per task and subject. They are not done again."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from finetune_trainer.contract.configs import EvaluateConfig
from finetune_trainer.contract.metrics import Metric
from finetune_trainer.contract.own_metrics import EvaluationTask
from finetune_trainer.contract.vocabulary import Subject
from finetune_trainer.evaluate.subjects.subjectdigest import subject_digest
from finetune_trainer.store import RunFolder

if TYPE_CHECKING:
    from finetune_trainer.scoring.tasks.harness import HarnessTask

WITHOUT_TASKS: Final[frozenset[Subject]] = frozenset({"Prompted"})
"""A task has its own prompts, so Prompted would have the values of Base, which has the same weights."""

logger = logging.getLogger(__name__)

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
