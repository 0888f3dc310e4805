# SPDX-License-Identifier: Apache-2.0
"""Win rates of the tuned model, as estimates for all rows of their kind."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from finetune_trainer.contract.metrics import Metric
from finetune_trainer.contract.vocabulary import Subject
from finetune_trainer.evaluate.estimates import TUNED, shortage_of
from finetune_trainer.evaluate.judge.verdicts import TIED
from finetune_trainer.statistics.bootstrap import resampled_mean
from finetune_trainer.statistics.estimate import Estimate
from finetune_trainer.statistics.groups import Groups
from finetune_trainer.statistics.proportion import Proportion


@dataclass(frozen=True)
class WinRates:
    """The verdicts of judges. A win rate is the mean over the rows, and compares already: it has no gain."""

    values: Mapping[Metric, Mapping[int, float]]
    """Of each judge: 1, 0.5 or 0 by number of the row; at least one row."""
    groups: Groups | None
    """None if the rows are independent."""

    @property
    def measures(self) -> Collection[Metric]:
        """The metrics of judges that have a score."""
        return self.values

    def has(self, metric: Metric, subject: Subject) -> bool:
        """Return whether the metric has a value for the subject: only the tuned model has one."""
        return subject == TUNED and metric in self.values

    def score(self, metric: Metric, subject: Subject = TUNED) -> Estimate:
        """Estimate the win rate of the tuned model."""
        if not self.has(metric, subject):
            raise KeyError((metric, subject))
        of_rows = self.values[metric]
        values = list(of_rows.values())
        groups = None if self.groups is None else self.groups.shared(list(of_rows))
        if groups is None and TIED not in values:
            return Proportion(int(sum(values)), len(values))
        return resampled_mean(values, groups, (0, 1))

    def gain(self, metric: Metric, over: Subject) -> Estimate:
        """Raise ValueError: a win rate has no gain."""
        raise ValueError(f"{metric} is a comparison, and has no gain over {over}")

    def shortage(self, estimate: Estimate) -> str:
        """Return why the rows give no interval, as a sentence; empty if they give one."""
        return shortage_of(estimate, self.groups)
