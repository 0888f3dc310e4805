# SPDX-License-Identifier: Apache-2.0
"""Measures all rows with one model, in batches that fit into memory."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from finetune_trainer.contract.configs import EvaluateConfig
from finetune_trainer.contract.metrics import Metric
from finetune_trainer.contract.vocabulary import FailureReason, Subject
from finetune_trainer.evaluate.estimates import TUNED
from finetune_trainer.evaluate.examples import Example
from finetune_trainer.evaluate.measure import Measure
from finetune_trainer.evaluate.measured_model import MeasuredBatch, MeasuredModel
from finetune_trainer.evaluate.measurement_log import PredictionLog, RowPrediction
from finetune_trainer.model.device import OutOfMemory, catch_out_of_memory, release_memory
from finetune_trainer.runtime.termination import StageFailure

MEMORY_ADVICE = (
    "Create a new run with spec.evaluation.profile set to a ComputeProfile with more memory per device, or"
    " shorten or remove such rows of the dataset"
)

MAX_BATCH_TOKENS: Final = 8192
"""Max tokens of a batch, padding included, except that 8 rows are always one batch."""
MIN_BATCH_ROWS: Final = 8

logger = logging.getLogger(__name__)


def batch_rows(longest: int, max_rows: int) -> int:
    """Number of rows of a batch whose longest row needs `longest` tokens."""
    return min(max_rows, max(MIN_BATCH_ROWS, MAX_BATCH_TOKENS // longest))


@dataclass(frozen=True)
class RowMeasurement:
    """The rows of the split, and what is measured with each model."""

    config: EvaluateConfig
    examples: dict[Subject, Sequence[Example]]
    """The rows as each subject is prompted."""
    measures: Mapping[Metric, Measure]
    log: PredictionLog
    devices: Sequence[torch.device]
    """Devices that hold the models."""
    on_batch: Callable[[int], None]
    """Called after each batch with its number of rows."""

    def missing(self, subject: Subject) -> list[Example]:
        """The rows that are not measured yet with this model."""
        measured = self.log.of(subject)
        return [example for example in self.examples[subject] if example.row not in measured]

    def measure(self, subject: Subject, model: MeasuredModel) -> None:
        """Measure the missing rows, the longest first, so that memory runs out early or never.

        If a batch does not fit into memory, it and all later batches have half as many rows.
        Raises StageFailure (OUT_OF_MEMORY) if a single row does not fit, or (LOSS_NOT_FINITE); Preempted.
        """
        rows = sorted(self.missing(subject), key=model.size, reverse=True)
        while rows:
            batch = rows[: batch_rows(model.size(rows[0]), self.log.batch_size)]
            predictions = self._fitting(subject, model, batch)
            if predictions is None:
                self.log.batch_size = len(batch) // 2
                release_memory()
                continue
            self.log.add(predictions)
            rows = rows[len(batch) :]
            self.on_batch(len(batch))

    def leave_out(self, subject: Subject) -> None:
        """Drop a subject of which not all rows can be measured."""
        self.examples.pop(subject, None)
        self.log.drop(subject)

    def _fitting(
        self, subject: Subject, model: MeasuredModel, batch: Sequence[Example]
    ) -> list[RowPrediction] | None:
        """Measure a batch; None if its half may fit into memory instead."""
        longest = max(model.size(example) for example in batch)
        activity = f"evaluating {self.config.split} rows with the model {subject}"
        try:
            with catch_out_of_memory(activity, self.devices, longest, by_batch=True):
                return self._predictions(subject, MeasuredBatch(model, batch))
        except OutOfMemory as error:
            if len(batch) == 1:
                raise StageFailure(
                    FailureReason.OUT_OF_MEMORY,
                    f"{error}; {self.config.split} row {batch[0].row} alone needs {longest} tokens."
                    f" {MEMORY_ADVICE}",
                ) from error
            logger.warning("%s; evaluation continues with batches of %d rows", error, len(batch) // 2)
            return None

    def _predictions(self, subject: Subject, batch: MeasuredBatch) -> list[RowPrediction]:
        values = {metric: self.measures[metric].values(batch) for metric in self.config.metrics}
        finite = batch.finite
        # The weights of Tuned are vetoed by a check, where a verdict can be.
        if not all(finite) and (subject != TUNED or self.config.checks is None):
            found = f"the model {subject} predicts NaN or infinity in its answer to"
            raise self._not_finite(subject, batch.examples[finite.index(False)], found)
        return [
            RowPrediction(
                subject=subject,
                row=example.row,
                text=None if answer is None else answer.text,
                tokens=None if answer is None else answer.num_tokens,
                finish_reason=None if answer is None else answer.finish_reason,
                choice=choice,
                not_finite=None if finite[index] else True,
                seconds=batch.answer_seconds,
                metrics={
                    metric: self._finite(subject, example, metric, of_rows[index])
                    for metric, of_rows in values.items()
                    if self.measures[metric].weight(example)
                },
            )
            for index, (example, answer, choice) in enumerate(
                zip(batch.examples, batch.generated, batch.chosen, strict=True)
            )
        ]

    def _finite(self, subject: Subject, example: Example, metric: Metric, value: float) -> float:
        if math.isfinite(value):
            return value
        raise self._not_finite(subject, example, f"{metric} of the model {subject} is {value} for")

    def _not_finite(self, subject: Subject, example: Example, found: str) -> StageFailure:
        advice = "Train again with a lower learningRate" if subject == TUNED else "Do not compare with it"
        return StageFailure(
            FailureReason.LOSS_NOT_FINITE,
            f"{found} {self.config.split} row {example.row}: its weights are damaged, or it overflows in its"
            f" dtype. {advice}",
        )
