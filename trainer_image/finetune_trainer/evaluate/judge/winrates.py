"""Win rates of the tuned model, as estimates for all rows of their kind."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from finetune_trainer.contract.metrics import Metric
from finetune_trainer.contract.vocabulary import Subject
from finetune_trainer.evaluate.estimates import TUNED, shortage_of
from finetune_trainer.evaluate.judge.verdicts import TIED
from finetune_trainer.statistics.bootstrap import Resampled, ratio, sums_of_units
from finetune_trainer.statistics.estimate import SHOWN_LEVEL, ConfidenceInterval, Estimate
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
        values = np.array(list(of_rows.values()))
        groups = None if self.groups is None else self.groups.shared(list(of_rows))
        if groups is None and TIED not in of_rows.values():
            return Proportion(int(values.sum()), len(values))
        return Resampled(
            value=float(values.mean()),
            rows=len(values),
            sums=sums_of_units(np.column_stack([values, np.ones(len(values))]), groups),
            function=ratio,
            limits=(0, 1),
        )

    def gain(self, metric: Metric, over: Subject) -> Estimate:
        """Raise ValueError: a win rate has no gain."""
        raise ValueError(f"{metric} is a comparison, and has no gain over {over}")

    def interval(self, estimate: Estimate) -> ConfidenceInterval | None:
        """Return the two-sided interval at `SHOWN_LEVEL`; None if the rows give none."""
        return None if self.shortage(estimate) else estimate.interval(SHOWN_LEVEL)

    def shortage(self, estimate: Estimate) -> str:
        """Return why the rows give no interval, as a sentence; empty if they give one."""
        return shortage_of(estimate, self.groups)
