# SPDX-License-Identifier: Apache-2.0
"""Does the tasks that a subject has not finished."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from finetune_trainer.contract.vocabulary import Subject
from finetune_trainer.evaluate.measured import MeasuredModel
from finetune_trainer.evaluate.tasks.adapter import Batches, SubjectLM
from finetune_trainer.evaluate.tasks.tasklog import TaskLog

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaskMeasurement:
    """The tasks, and where they are done."""

    log: TaskLog
    devices: Sequence[torch.device]
    """Devices that hold the models."""
    batch_size: int
    """Max requests of a batch."""
    on_rows: Callable[[int], None]
    """Called with the number of rows that were done since the last call."""

    def measure(self, subject: Subject, tokenizer: PreTrainedTokenizerBase, model: MeasuredModel) -> None:
        """Do the missing tasks, and save each.

        Raises StageFailure (OUT_OF_MEMORY, LOSS_NOT_FINITE, STORE_UNAVAILABLE), Preempted.
        """
        for wanted in self.log.missing(subject):
            task = self.log.tasks[wanted]
            logger.info("%s of %s: %d rows", wanted.metric_name, subject, task.rows)
            requests = task.requests.all
            batches = Batches(
                activity=f"doing the task {wanted.name} with the model {subject}",
                devices=self.devices,
                max_rows=self.batch_size,
                on_batch=_of_rows(self.on_rows, task.rows, len(requests)),
            )
            lm = SubjectLM(model, tokenizer, batches)
            responses = getattr(lm, task.requests.kind)(requests, disable_tqdm=True)
            self.log.add(wanted, subject, task.values(responses))


def _of_rows(on_rows: Callable[[int], None], rows: int, requests: int) -> Callable[[int], None]:
    """Count requests as rows, of which each has one or more."""
    done = 0

    def count(finished: int) -> None:
        nonlocal done
        before, done = done, done + finished
        on_rows(done * rows // requests - before * rows // requests)

    return count
