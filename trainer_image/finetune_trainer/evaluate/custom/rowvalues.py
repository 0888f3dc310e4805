# SPDX-License-Identifier: Apache-2.0
"""Scores and gains of the user's metrics, as estimates for all rows of their kind."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from finetune_trainer.contract.metrics import Metric
from finetune_trainer.contract.results import Score
from finetune_trainer.contract.vocabulary import Subject
from finetune_trainer.evaluate.estimates import MORE_ROWS_OF_SPLIT, TUNED, shortage_of
from finetune_trainer.evaluate.evidence import score_of
from finetune_trainer.statistics.bootstrap import MIN_UNITS, resampled_mean
from finetune_trainer.statistics.estimate import Estimate
from finetune_trainer.statistics.groups import Groups
from finetune_trainer.statistics.paired import PairedProportions
from finetune_trainer.statistics.proportion import Proportion

UNBOUNDED: Final = (-math.inf, math.inf)
"""Range of a metric of which nothing is known."""


@dataclass(frozen=True)
class RowValues:
    """What the user's functions returned. A score is the mean over the rows; higher is better.

    Values of 0 and 1 are those of a proportion: the bootstrap does not know that another row can be wrong.
    """

    values: Mapping[tuple[Metric, Subject], Mapping[int, float]]
    """The value of each row, by its number."""
    groups: Groups | None = None
    """None if the rows are independent."""
    remedy: str = MORE_ROWS_OF_SPLIT
    """How to get more rows, as an imperative."""

    @property
    def measures(self) -> Collection[Metric]:
        """The metrics."""
        return {metric for metric, _ in self.values}

    @property
    def subjects(self) -> Sequence[Subject]:
        """The subjects with answers."""
        return list(dict.fromkeys(subject for _, subject in self.values))

    def has(self, metric: Metric, subject: Subject) -> bool:
        """Return whether the answers of the subject were measured."""
        return (metric, subject) in self.values

    def score(self, metric: Metric, subject: Subject) -> Estimate:
        """Estimate the mean of a subject."""
        of_rows = self.values[metric, subject]
        values, groups = list(of_rows.values()), self._groups_of(list(of_rows))
        if not _are_shares(values):
            return resampled_mean(values, groups, UNBOUNDED)
        if groups is not None:
            return resampled_mean(values, groups, (0, 1))
        return Proportion(int(sum(values)), len(values))

    def gain(self, metric: Metric, over: Subject) -> Estimate:
        """Estimate the mean gain of the tuned model, over the rows that both models answered."""
        tuned, others = self.values[metric, TUNED], self.values[metric, over]
        common = [row for row in tuned if row in others]
        samples = [[values[row] for row in common] for values in (tuned, others)]
        gains = [value - other for value, other in zip(*samples, strict=True)]
        groups = self._groups_of(common)
        if not _are_shares(*samples):
            return resampled_mean(gains, groups, UNBOUNDED)
        if groups is not None:
            return resampled_mean(gains, groups, (-1, 1))
        return PairedProportions(gains.count(1), gains.count(-1), len(gains))

    def shortage(self, estimate: Estimate) -> str:
        """Return why the rows give no interval, as a sentence; empty if they give one."""
        return shortage_of(estimate, self.groups, self.remedy)

    def scores(self) -> Iterator[Score]:
        """Yield the score of each metric and subject, with its interval; those of a subject together.

        A termination message may omit the last ones.
        """
        for metric, subject in sorted(self.values, key=lambda each: self.subjects.index(each[1])):
            yield score_of(metric, subject, self)

    def _groups_of(self, numbers: Sequence[int]) -> list[str] | None:
        return None if self.groups is None else self.groups.shared(numbers)


def _are_shares(*samples: Sequence[float]) -> bool:
    """Return whether each value is 0 or 1, of enough rows to tell."""
    return len(samples[0]) >= MIN_UNITS and all(set(values) <= {0, 1} for values in samples)
