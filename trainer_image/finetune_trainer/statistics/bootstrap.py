# SPDX-License-Identifier: Apache-2.0
"""Estimates figures without a closed interval, by the bootstrap over independent units.

A unit is a row, or a group of rows that are not independent because they share the group. BCa intervals are
the bias-corrected and accelerated percentiles of resampled data: Efron, B. (1987). Better bootstrap
confidence intervals. Journal of the American Statistical Association 82(397), 171-185.

BCa intervals of few units with skewed values are too narrow. Below `MANY_UNITS`, each bound is therefore the
wider of BCa and of the bootstrap-t, which resamples the figure in units of its standard error: Hall, P.
(1988). Theoretical comparison of bootstrap confidence intervals. The Annals of Statistics 16(3), 927-953.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

from finetune_trainer.statistics.estimate import ConfidenceInterval


@dataclass(frozen=True)
class Groups:
    """Groups that the split kept together, because their rows are not independent."""

    column: str
    """Column of the source that names the group of a row."""
    of_rows: Mapping[int, str] | None
    """By number of the row; None if the dataset does not keep the column."""

    @classmethod
    def of(cls, column: str, kept: Iterable[Mapping[str, str]]) -> "Groups":
        """Read the groups of all rows of a split from the kept columns of each."""
        groups = {number: columns.get(column) for number, columns in enumerate(kept, 1)}
        known = {number: group for number, group in groups.items() if group is not None}
        return cls(column, known if len(known) == len(groups) else None)

    def shared(self, numbers: Sequence[int]) -> list[str] | None:
        """Return the group of each of these rows; None if no two share one, or the groups are unknown."""
        if self.of_rows is None:
            return None
        groups = [self.of_rows[number] for number in numbers]
        return None if len(set(groups)) == len(groups) else groups


Numbers = NDArray[np.float64]

RESAMPLES: Final = 9_999
MIN_UNITS: Final = 20
"""The interval from fewer rows or groups covers much less than it states."""
MANY_UNITS: Final = 100
"""From this number of rows or groups on, intervals are BCa alone."""
MAX_UNITS: Final = 2_000
"""More rows or groups are put together at random into this number of groups. It bounds time and memory, and
leaves the figure and its variance as they are."""
MAX_BATCH_NUMBERS: Final = 2_000_000
"""Numbers in memory at once, 8 bytes each."""
SEED: Final = 0
STEP: Final = 1e-6
"""Step of numerical derivatives, as a share of a sum over all units."""
EQUAL: Final = 1e-12
"""Figures that differ by less are equal but for rounding."""


@dataclass(frozen=True)
class Resampled:
    """A figure that is a function of sums over independent units: rows, or groups of rows."""

    value: float
    rows: int
    sums: Numbers
    """Of each unit; shape (units, columns)."""
    function: Callable[[Numbers], Numbers]
    """The figure of each of several sums: shape (…, columns) to (…)."""
    limits: tuple[float, float]
    """Range of the figure."""

    @property
    def units(self) -> int:
        """Number of independent units."""
        return len(self.sums)

    @property
    def has_interval(self) -> bool:
        """Whether the units limit the figure of others."""
        return self.units >= MIN_UNITS and not self._has_unknown_spread

    @property
    def _has_unknown_spread(self) -> bool:
        """Whether all units have one figure, and no range says how far others may differ.

        Differences that are all 0 are those of equal models, which do not differ on other units either.
        """
        low, high = self.limits
        is_difference = math.isinf(low) and math.isinf(high)
        return (
            self._is_constant
            and not math.isfinite(high - low)
            and not (is_difference and abs(self.value) <= EQUAL)
        )

    @property
    def deviation(self) -> float:
        """Standard deviation of the resampled figures times the square root of `rows`.

        If all figures are equal, it is that of a share of 1 with two units added on both sides.
        """
        if self.units < MIN_UNITS:
            return math.inf
        if not self._is_constant:
            return float(self._resampled.standard_error) * math.sqrt(self.rows)
        low, high = self.limits
        share = 2 / (self.units + 4)
        spread = high - low if math.isfinite(high - low) else 0.0
        return spread * math.sqrt(share * (1 - share) * self.rows / self.units)

    def deviation_at(self, _: float) -> float:
        """Return `deviation`: how it depends on the figure is not known."""
        return self.deviation

    def interval(self, level: float) -> ConfidenceInterval:
        """Return the interval at this level. With fewer than `MIN_UNITS` units it is the figure's range."""
        low, high = self.limits
        if self.units < MIN_UNITS:
            return ConfidenceInterval(low, high)
        if self._is_constant:
            return self._constant_interval(level)
        bounds = self._bootstrap(level, bootstrap_result=self._resampled, n_resamples=0).confidence_interval
        ends = np.array([bounds.low, bounds.high], dtype=float)
        if not np.isfinite(ends).all():
            # The figure lies outside of all resampled ones, so that its bias cannot be corrected.
            ends = np.quantile(self._resampled.bootstrap_distribution, [(1 - level) / 2, (1 + level) / 2])
        if self.units < MANY_UNITS:
            studentized = self._studentized_interval(level)
            ends = np.array([np.fmin(ends[0], studentized[0]), np.fmax(ends[1], studentized[1])])
        return ConfidenceInterval(
            min(max(float(ends[0]), low), self.value), max(min(float(ends[1]), high), self.value)
        )

    def _studentized_interval(self, level: float) -> Numbers:
        """Return both ends of the bootstrap-t interval; NaN where no end is known.

        An end is infinite if too many samples of one value have no standard error. It then is the limit of
        the figure's range, and not known if there is none.
        """
        distances, error = self._studentized
        quantiles = np.quantile(distances, [(1 + level) / 2, (1 - level) / 2], method="nearest")
        ends: Numbers = self.value - quantiles * error
        return np.where(np.isfinite(ends) | np.isfinite(self.limits), ends, np.nan)

    @cached_property
    def _studentized(self) -> tuple[Numbers, float]:
        """Distances of resampled figures from the figure in their standard errors, and that of the figure."""
        drawn = np.random.default_rng(SEED).integers(self.units, size=(RESAMPLES, self.units))
        counts = self._counts(np.concatenate([np.arange(self.units)[None], drawn]))
        figures, errors = self.function(counts @ self.sums), self._standard_errors(counts)
        distances = figures[1:] - figures[0]
        distances[np.abs(distances) <= EQUAL * max(1.0, abs(self.value))] = 0
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(distances == 0, 0, distances / errors[1:]), float(errors[0])

    def _standard_errors(self, counts: Numbers) -> Numbers:
        """The standard error of the figure of each sample, by the delta method.

        Args:
            counts: how often each unit was drawn; shape (samples, units).
        """
        totals = counts @ self.sums
        steps = STEP * np.maximum(np.abs(self.sums).sum(0), 1)
        slopes = np.stack(
            [
                (self.function(totals + step) - self.function(totals - step)) / (2 * step[column])
                for column, step in enumerate(np.diag(steps))
            ],
            axis=-1,
        )
        influences = slopes @ self.sums.T
        sums = np.einsum("su,su->s", counts, influences)
        squares = np.einsum("su,su,su->s", counts, influences, influences)
        spreads = np.maximum(squares - sums**2 / self.units, 0)
        errors: Numbers = np.sqrt(spreads * self.units / (self.units - 1))
        return errors

    def _constant_interval(self, level: float) -> ConfidenceInterval:
        """Return the interval of a figure that is the same for all units, which no resampling varies.

        Another unit may differ. At the level, at least `share` of all units have this figure, by the exact
        interval of a proportion; the remaining ones lie anywhere in a range that is bounded.
        """
        low, high = self.limits
        if not math.isfinite(high - low):
            return ConfidenceInterval(self.value, self.value)
        share = ((1 - level) / 2) ** (1 / self.units)
        return ConfidenceInterval(
            share * self.value + (1 - share) * low, share * self.value + (1 - share) * high
        )

    @cached_property
    def _is_constant(self) -> bool:
        figures = self._resampled.bootstrap_distribution
        return bool(np.ptp(figures) <= EQUAL * max(1.0, abs(self.value)))

    @cached_property
    def _resampled(self) -> Any:
        return self._bootstrap(0.5, method="percentile", n_resamples=RESAMPLES)

    def _bootstrap(self, level: float, **settings: Any) -> Any:
        return bootstrap(
            (np.arange(self.units),),
            self._figures,
            vectorized=True,
            confidence_level=level,
            batch=max(1, MAX_BATCH_NUMBERS // self.units),
            rng=np.random.default_rng(SEED),
            **{"method": "BCa", **settings},
        )

    def _figures(self, drawn: Numbers, axis: int) -> Numbers:
        """Compute the figure of each sample of units; shape (samples, units drawn), or one sample."""
        samples = np.atleast_2d(np.moveaxis(drawn, axis, -1)).astype(np.int64)
        figures = self.function(self._counts(samples) @ self.sums)
        return figures if drawn.ndim > 1 else figures[0]

    def _counts(self, samples: NDArray[np.int64]) -> Numbers:
        """Count how often each sample has each unit; shape (samples, units drawn) to (samples, units)."""
        places = samples + self.units * np.arange(len(samples))[:, None]
        counts = np.bincount(places.ravel(), minlength=len(samples) * self.units)
        return counts.reshape(-1, self.units).astype(float)


def sum_units(columns: Numbers, groups: Sequence[Hashable] | None = None) -> Numbers:
    """Sum the columns of the rows of each unit.

    Args:
        columns: shape (rows, columns).
        groups: the group of each row; None if the rows are independent.

    Returns:
        Shape (units, columns), with at most `MAX_UNITS` units.
    """
    if groups is not None:
        numbers: dict[Hashable, int] = {}
        columns = _sum_by(columns, np.array([numbers.setdefault(each, len(numbers)) for each in groups]))
    if len(columns) <= MAX_UNITS:
        return columns
    places = np.random.default_rng(SEED).permutation(len(columns))
    return _sum_by(columns, places % MAX_UNITS)


def _sum_by(columns: Numbers, units: NDArray[np.int64]) -> Numbers:
    sums = np.zeros((int(units.max()) + 1, columns.shape[1]))
    np.add.at(sums, units, columns)
    return sums


def ratio(sums: Numbers) -> Numbers:
    """Divide the first column by the second: a mean by weighted values and their weights."""
    quotient: Numbers = sums[..., 0] / sums[..., 1]
    return quotient


def bootstrap_mean(
    values: Sequence[float] | Numbers,
    groups: Sequence[Hashable] | None,
    limits: tuple[float, float],
    weights: Numbers | None = None,
) -> Resampled:
    """Estimate a mean over rows.

    Args:
        values: the value of each row; with `weights`, the sum of its values.
        groups: the group of each row; None if the rows are independent.
        limits: range of the mean.
        weights: the weight of each row. Default: 1.
    """
    columns = np.column_stack([values, np.ones(len(values)) if weights is None else weights]).astype(float)
    return Resampled(
        value=float(columns[:, 0].sum() / columns[:, 1].sum()),
        rows=len(columns),
        sums=sum_units(columns, groups),
        function=ratio,
        limits=limits,
    )
