# SPDX-License-Identifier: Apache-2.0
"""Plan of the trainings of a learning curve: nested subsets of the training rows, and the progress of all.

Preflight uses the plan, too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, overload

import numpy as np
from typing_extensions import override

from finetune_trainer.contract.configs import TrainConfig
from finetune_trainer.contract.hyperparameters import Hyperparameters
from finetune_trainer.contract.results import Progress
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.runtime.progress import Reporter
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.stage.context import StageContext
from finetune_trainer.tokens.batching import row_lengths
from finetune_trainer.train.batches import rows_read, run_steps, steps_per_epoch
from finetune_trainer.train.inputs import TrainingData

SEED_OFFSET: Final = 0x5EED
"""Added to the run's seed, so that the choice of rows is independent of their order in an epoch."""


class RowSubset(Sequence[Any]):
    """Rows chosen by their indices, read when they are used."""

    def __init__(self, rows: Sequence[Any], indices: Sequence[int]) -> None:
        self._rows = rows
        self._indices = list(indices)

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> Any: ...

    @overload
    def __getitem__(self, index: slice) -> "RowSubset": ...

    @override
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return RowSubset(self._rows, self._indices[index])
        return self._rows[self._indices[index]]

    @property
    def lengths(self) -> Sequence[int]:
        """Number of tokens of each row."""
        known = row_lengths(self._rows)
        return [int(known[index]) for index in self._indices]


def subset_size(rows: int, share: float) -> int:
    """Number of rows of a subset, at least 1."""
    return max(1, math.ceil(share * rows))


def share_of_work(subset_rows: int, rows: int, used: Hyperparameters) -> float:
    """Rows that a training on a subset reads, relative to those that the run reads."""
    of_subset, of_run = (
        rows_read(each, used.batch_size, used.epochs, used.max_steps) for each in (subset_rows, rows)
    )
    return of_subset / of_run


def subset_indices(rows: int, share: float, seed: int) -> list[int]:
    """Indices of the rows of a subset, ascending. A larger share has the rows of a smaller one."""
    order = np.random.default_rng(seed + SEED_OFFSET).permutation(rows)
    chosen: list[int] = np.sort(order[: subset_size(rows, share)]).tolist()
    return chosen


def subset_data(data: TrainingData, hyperparameters: Hyperparameters, share: float) -> TrainingData:
    """The inputs of a training on a share of the rows; `hyperparameters` are those of that training."""
    rows = RowSubset(data.rows, subset_indices(len(data.rows), share, hyperparameters.seed))
    return replace(
        data,
        rows=rows,
        max_row_tokens=max(rows.lengths),
        steps_per_epoch=steps_per_epoch(len(rows), hyperparameters.batch_size),
    )


class PartialProgress(Reporter):
    """Reports the steps of one training as a part of those of all trainings of the run."""

    def __init__(self, reporter: Reporter, steps_before: int, total_steps: int, *, is_subset: bool) -> None:
        """Of a subset, only steps and times are reported: the figures in the status are those of the run."""
        self._reporter = reporter
        self._steps_before = steps_before
        self._total_steps = total_steps
        self._is_subset = is_subset
        self._step_seconds: float | None = None

    @override
    def progress(self, progress: Progress) -> None:
        left, eta = progress.total_steps - progress.step, progress.eta_seconds
        if left and eta is not None:
            self._step_seconds = eta / left
        step = self._steps_before + progress.step
        if self._step_seconds is not None:
            eta = round(self._step_seconds * (self._total_steps - step), 1)
        update = {"step": step, "total_steps": self._total_steps, "eta_seconds": eta}
        if self._is_subset:
            progress = Progress(
                epoch=progress.epoch,
                tokens_per_second=progress.tokens_per_second,
                device_memory_bytes=progress.device_memory_bytes,
            )
        self._reporter.progress(progress.model_copy(update=update))


def require_validation_rows(rows: int) -> None:
    """Raise StageFailure (INVALID_CONFIG) if the dataset of a run with a learning curve has no such rows."""
    if not rows:
        raise StageFailure(
            FailureReason.INVALID_CONFIG,
            "learningCurve: its losses need validation rows, but the dataset has none; raise"
            " split.validation, or remove learningCurve",
        )


@dataclass(frozen=True)
class CurvePlan:
    """The main run, and a training for each share of the config."""

    main_steps: int
    subsets: tuple[TrainConfig, ...]
    """Configs with the settings and the epochs of the main run, and without Checkpoints to keep."""

    @classmethod
    def of(cls, config: TrainConfig, used: Hyperparameters, rows: int) -> "CurvePlan":
        """Plan a run on `rows` training rows; `used` are hyperparameters whose batches fit into memory."""

        def of_share(share: float) -> TrainConfig:
            steps = run_steps(subset_size(rows, share), used.batch_size, used.epochs, used.max_steps)
            hyperparameters = used.model_copy(update={"total_steps": steps})
            return config.model_copy(update={"hyperparameters": hyperparameters, "keep": 0, "keep_steps": ()})

        return cls(config.hyperparameters.total_steps, tuple(map(of_share, config.learning_curve)))

    def main_context(self, context: StageContext) -> StageContext:
        """The context of the main run."""
        return self._reporting(context, 0, is_subset=False)

    def subset_context(self, context: StageContext, index: int) -> StageContext:
        """The context of the training of a subset."""
        before = sum(each.hyperparameters.total_steps for each in self.subsets[:index])
        return self._reporting(context, self.main_steps + before, is_subset=True)

    def _reporting(self, context: StageContext, steps_before: int, *, is_subset: bool) -> StageContext:
        total = self.main_steps + sum(each.hyperparameters.total_steps for each in self.subsets)
        reporter = PartialProgress(context.reporter, steps_before, total, is_subset=is_subset)
        return replace(context, reporter=reporter)
