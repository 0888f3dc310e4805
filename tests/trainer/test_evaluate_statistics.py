# SPDX-License-Identifier: Apache-2.0
"""Intervals of an evaluation: values from the literature and from SciPy, coverage, and properties."""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import binom, bootstrap

from finetune_trainer.statistics.bootstrap import (
    MANY_UNITS,
    MAX_UNITS,
    MIN_UNITS,
    RESAMPLES,
    SEED,
    Numbers,
    Resampled,
    ratio,
    sum_units,
)
from finetune_trainer.statistics.estimate import (
    MAX_ROWS,
    POWER,
    SHOWN_LEVEL,
    Estimate,
    compute_needed_rows,
    one_sided,
)
from finetune_trainer.statistics.proportions import PairedProportions, Proportion
from tools.evaluation import intervals
from tools.evaluation.intervals import Coverage

COVERED: Final = (0.92, 0.985)
"""Of two-sided intervals at 95 %."""


def bounds(estimate: Estimate, level: float = SHOWN_LEVEL) -> tuple[float, float]:
    interval = estimate.interval(level)
    return interval.low, interval.high


def mean_of(values: Numbers, weights: Numbers | None = None, groups: list[int] | None = None) -> Resampled:
    weights = np.ones(len(values)) if weights is None else weights
    sums = sum_units(np.stack([values * weights, weights], 1), groups)
    return Resampled(float(np.average(values, weights=weights)), len(values), sums, ratio, (0, 1))


# Proportions


@pytest.mark.parametrize(
    ("right", "rows", "low", "high"),
    [
        # Newcombe (1998), Statistics in Medicine 17, 857-872, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        # Below 30 rows or above 0.98: method 5 of the same table, Clopper and Pearson.
        (1, 29, 0.0009, 0.1776),
        (0, 20, 0, 0.1684),
        (20, 20, 0.8316, 1),
    ],
)
def test_a_share_has_the_published_interval(right: int, rows: int, low: float, high: float) -> None:
    assert bounds(Proportion(right, rows)) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(
    ("right", "rows", "method"),
    [
        (20, 29, "exact"),
        (20, 30, "wilson"),
        (94, 100, "wilson"),
        (95, 100, "exact"),
        (6, 100, "wilson"),
        (5, 100, "exact"),
        (980, 1000, "wilson"),
        (981, 1000, "exact"),
    ],
)
def test_small_and_extreme_samples_have_the_exact_interval(right: int, rows: int, method: str) -> None:
    assert Proportion(right, rows).method == method


def test_a_bound_is_one_sided_at_the_confidence_of_a_gate() -> None:
    """All of 34 rows right: the share whose 34th power is 5 %."""
    assert one_sided(Proportion(34, 34), 0.95).low == pytest.approx(0.05 ** (1 / 34))


# Paired differences of proportions


@pytest.mark.parametrize(
    ("table", "level", "low", "high"),
    [
        # Tango (1998), section 6.1: cross-over trial on soft contact lenses.
        ((0, 1, 44), 0.9, -0.096, None),
        # Fagerland, Lydersen and Laake (2017), Statistical Analysis of Contingency Tables, chapter 8.
        ((6, 16, 161), 0.95, -0.1240, -0.0054),
        # scoreci.mp(25, 28, 618, 0.9) of the R package PropCIs.
        ((28, 25, 618), 0.9, -0.0148, 0.0247),
    ],
)
def test_a_paired_difference_has_the_published_interval(
    table: tuple[int, int, int], level: float, low: float, high: float | None
) -> None:
    found = bounds(PairedProportions(*table), level)

    assert round(found[0], 3 if high is None else 4) == low
    assert high is None or round(found[1], 4) == high


def test_without_a_discordant_pair_the_interval_is_that_of_a_score_test() -> None:
    z = 1.959964
    low, high = bounds(PairedProportions(0, 0, 50))

    assert (low, high) == pytest.approx((-(z**2) / (50 + z**2), z**2 / (50 + z**2)), rel=1e-6)


def test_a_model_that_alone_answers_all_rows_right_gains_at_most_1() -> None:
    low, high = bounds(PairedProportions(50, 0, 50))

    assert 0.8 < low < high == 1


# Means


def test_a_mean_has_the_interval_of_scipy() -> None:
    values = np.random.default_rng(3).beta(2, 1, MANY_UNITS)

    assert bounds(mean_of(values)) == pytest.approx(bca(values), abs=1e-12)


def bca(values: Numbers) -> tuple[float, float]:
    interval = bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, method="BCa", rng=np.random.default_rng(SEED)
    ).confidence_interval
    return interval.low, interval.high


@pytest.mark.parametrize("skewed", [False, True])
def test_a_mean_of_few_rows_has_the_wider_bounds_of_bca_and_of_the_bootstrap_t(skewed: bool) -> None:
    values = np.random.default_rng(3).beta(8, 0.4, 40)
    values = values if skewed else 1 - values
    drawn = np.random.default_rng(SEED).integers(40, size=(RESAMPLES, 40))
    errors = values[drawn].std(1, ddof=1) / math.sqrt(40)
    distances = (values[drawn].mean(1) - values.mean()) / errors
    error = values.std(ddof=1) / math.sqrt(40)
    high, low = values.mean() - np.quantile(distances, [0.025, 0.975], method="nearest") * error

    expected = bca(values)
    assert (low < expected[0], high > expected[1]) != (False, False)
    found = bounds(mean_of(values))

    assert found == pytest.approx((max(min(low, expected[0]), 0), min(max(high, expected[1]), 1)), abs=1e-6)


def test_the_interval_of_a_mean_is_the_same_each_time() -> None:
    values = np.random.default_rng(3).beta(2, 1, 60)

    assert bounds(mean_of(values)) == bounds(mean_of(values))


def test_rows_count_by_their_weight() -> None:
    """A row of weight 2 is two rows that cannot vary alone: the same value, with a wider interval."""
    random = np.random.default_rng(4)
    values, weights = random.beta(2, 2, 200), random.integers(1, 9, 200).astype(float)

    weighted, plain = mean_of(values, weights), mean_of(values)

    low, high = bounds(weighted)
    assert low < np.average(values, weights=weights) < high
    assert weighted.deviation > plain.deviation


def test_rows_of_a_group_vary_together() -> None:
    """Ten equal rows per group say as much as one: the interval is that of the groups."""
    values = np.random.default_rng(5).beta(2, 2, 40)
    repeated, groups = np.repeat(values, 10), [row // 10 for row in range(400)]

    assert bounds(mean_of(repeated, groups=groups)) == pytest.approx(bounds(mean_of(values)), abs=1e-9)
    low, high = bounds(mean_of(repeated))
    assert high - low < 0.5 * np.subtract(*bounds(mean_of(values))[::-1])
    assert mean_of(repeated, groups=groups).deviation > 2 * mean_of(repeated).deviation


def test_many_rows_are_put_together_without_changing_value_or_width() -> None:
    values = np.random.default_rng(6).beta(2, 2, 40_000)
    mean = mean_of(values)

    assert len(mean.sums) == MAX_UNITS
    assert mean.sums[:, 0].sum() == pytest.approx(values.sum())
    assert mean.deviation == pytest.approx(values.std(), rel=0.05)


def test_less_than_the_min_number_of_units_exclude_nothing() -> None:
    few = mean_of(np.linspace(0, 1, MIN_UNITS - 1))

    assert bounds(few) == (0, 1)
    assert compute_needed_rows(few, 0.1, 0.95) is None


def test_rows_that_are_all_equal_leave_room_for_others() -> None:
    """As the exact interval of a share, where 20 of 20 rows are right."""
    assert bounds(mean_of(np.ones(20))) == pytest.approx((0.8316, 1), abs=5e-5)
    low, high = bounds(mean_of(np.full(20, 0.3), np.arange(1.0, 21)))
    assert (low, high) == pytest.approx((0.3 * 0.8316, 0.3 * 0.8316 + 0.1684), abs=5e-5)


@pytest.mark.parametrize(("value", "has_interval"), [(0.0, True), (0.7, False)])
def test_only_differences_of_0_have_an_interval_without_width(value: float, has_interval: bool) -> None:
    equal = Resampled(value, 30, np.stack([np.full(30, value), np.ones(30)], 1), ratio, (-math.inf, math.inf))

    assert equal.has_interval == has_interval
    assert not has_interval or bounds(equal) == (0, 0)


# Coverage


def grid(always: int, values: Sequence[float] = intervals.VALUES) -> list[object]:
    """Cases with `always` rows, and for `make test-full` with more."""
    return [
        pytest.param(
            rows, value, id=f"{rows} rows, {value}", marks=() if rows == always else pytest.mark.full
        )
        for rows in intervals.ROWS
        if rows >= always
        for value in values
    ]


def assert_covered(found: Coverage) -> None:
    low, high = COVERED
    assert low <= found.two_sided <= high
    # At a share near 0 or 1, outcomes are so few that a one-sided bound cannot be nearer to its level.
    assert min(found.lower, found.upper) >= 0.92


@pytest.mark.parametrize(("rows", "value"), grid(50))
def test_the_interval_of_a_share_covers_what_it_states(rows: int, value: float) -> None:
    assert_covered(intervals.of_proportions(rows, value))


@pytest.mark.parametrize("value", [0.97, 0.99, 0.996])
@pytest.mark.parametrize("rows", [30, 50, 100, 200])
def test_the_interval_of_a_share_near_1_covers_nearly_what_it_states(rows: int, value: float) -> None:
    found = intervals.of_proportions(rows, value)

    assert found.two_sided >= COVERED[0]
    assert min(found.lower, found.upper) >= 0.9


@pytest.mark.parametrize(("rows", "value"), grid(50))
def test_the_interval_of_a_paired_difference_covers_what_it_states(rows: int, value: float) -> None:
    assert_covered(intervals.of_pairs(rows, value, samples=2000))


@pytest.mark.parametrize(("rows", "value"), grid(20))
def test_the_interval_of_a_mean_covers_what_it_states(rows: int, value: float) -> None:
    assert_covered(intervals.of_means(rows, value, samples=300))


@pytest.mark.parametrize(("rows", "deviation"), grid(20, intervals.SKEWS))
def test_the_interval_of_a_mean_of_skewed_values_covers_nearly_what_it_states(
    rows: int, deviation: float
) -> None:
    found = intervals.of_skewed_means(rows, deviation, samples=300)

    assert found.two_sided >= 0.9
    assert min(found.lower, found.upper) >= 0.86


# Properties

COUNTS: Final = st.integers(1, 400).flatmap(lambda rows: st.tuples(st.integers(0, rows), st.just(rows)))
TABLES: Final = st.integers(1, 400).flatmap(
    lambda rows: st.integers(0, rows).flatmap(
        lambda gained: st.tuples(st.just(gained), st.integers(0, rows - gained), st.just(rows))
    )
)
LEVELS: Final = st.floats(0.01, 0.999)


@settings(deadline=None)
@given(COUNTS, LEVELS)
def test_the_interval_of_a_share_contains_it_and_is_symmetric(counts: tuple[int, int], level: float) -> None:
    right, rows = counts
    low, high = bounds(Proportion(right, rows), level)

    assert 0 <= low <= right / rows <= high <= 1
    assert low < high
    other_low, other_high = bounds(Proportion(rows - right, rows), level)
    assert (1 - other_high, 1 - other_low) == pytest.approx((low, high), abs=1e-9)


@settings(deadline=None)
@given(TABLES, LEVELS)
@example((0, 0, 1), 0.95)
def test_the_interval_of_a_paired_difference_contains_it_and_is_symmetric(
    table: tuple[int, int, int], level: float
) -> None:
    gained, lost, rows = table
    low, high = bounds(PairedProportions(gained, lost, rows), level)

    assert -1 <= low <= (gained - lost) / rows <= high <= 1
    assert low < high
    swapped = bounds(PairedProportions(lost, gained, rows), level)
    assert (-swapped[1], -swapped[0]) == pytest.approx((low, high), abs=1e-9)


@settings(deadline=None)
@given(TABLES, LEVELS)
def test_intervals_narrow_with_more_rows_of_the_same_kind(table: tuple[int, int, int], level: float) -> None:
    gained, lost, rows = table

    def widths(times: int) -> list[float]:
        estimates = (
            Proportion(gained * times, rows * times),
            PairedProportions(gained * times, lost * times, rows * times),
        )
        return [high - low for low, high in (bounds(each, level) for each in estimates)]

    assert all(more < less for less, more in zip(widths(1), widths(4), strict=True))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=MIN_UNITS, max_size=60), LEVELS)
@example([0.0] * 19 + [1.0], 0.95)
@example([0.5] * 20, 0.95)
def test_the_interval_of_a_mean_contains_it_and_stays_in_its_range(values: list[float], level: float) -> None:
    mean = mean_of(np.array(values))
    low, high = bounds(mean, level)

    assert 0 <= low <= mean.value <= high <= 1
    assert mean.deviation >= 0


@settings(max_examples=10, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=MIN_UNITS, max_size=60), st.floats(0.5, 0.99))
def test_the_interval_of_a_mean_difference_is_symmetric_and_narrows_with_more_rows(
    differences: list[float], level: float
) -> None:
    def interval(values: Numbers) -> tuple[float, float]:
        sums = np.stack([values, np.ones(len(values))], 1)
        return bounds(Resampled(float(values.mean()), len(values), sums, ratio, (-1, 1)), level)

    first = np.array(differences)
    low, high = interval(first)

    swapped = interval(-first)
    assert (-swapped[1], -swapped[0]) == pytest.approx((low, high), abs=1e-6)
    more_low, more_high = interval(np.tile(first, 4))
    assert more_high - more_low <= 0.75 * (high - low)


# Number of rows

MANY: Final = 1_000_000


def test_the_number_of_rows_is_that_of_the_power_formula() -> None:
    """(1.645 × √0.16 + 0.842 × √0.09)² / 0.1² for a share of 0.9 against 0.8."""
    assert compute_needed_rows(Proportion(9 * MANY, 10 * MANY), 0.8, 0.95) == 83


@pytest.mark.parametrize(("percent", "bound"), [(90, 0.8), (85, 0.8), (98, 0.95)])
def test_with_that_number_a_gate_on_a_share_passes_about_as_often_as_stated(
    percent: int, bound: float
) -> None:
    rows = compute_needed_rows(Proportion(percent * MANY, 100 * MANY), bound, 0.95)
    assert rows is not None

    chances = binom.pmf(range(rows + 1), rows, percent / 100)
    passed = sum(
        chance
        for right, chance in enumerate(chances)
        if chance > 1e-6 and one_sided(Proportion(right, rows), 0.95).low >= bound
    )
    assert passed == pytest.approx(POWER, abs=0.07)


def test_with_that_number_a_gate_on_a_gain_passes_about_as_often_as_stated() -> None:
    chances = (0.2, 0.1, 0.7)
    rows = compute_needed_rows(PairedProportions(2 * MANY, MANY, 10 * MANY), 0, 0.95)
    assert rows is not None

    tables = np.random.default_rng(7).multinomial(rows, chances, 1000)
    passed = [
        one_sided(PairedProportions(int(gained), int(lost), rows), 0.95).low > 0 for gained, lost, _ in tables
    ]
    assert np.mean(passed) == pytest.approx(POWER, abs=0.05)


def test_a_gate_whose_bound_is_the_value_is_decided_by_no_number_of_rows() -> None:
    assert compute_needed_rows(Proportion(8, 10), 0.8, 0.95) is None
    assert compute_needed_rows(Proportion(MANY + 1, 2 * MANY), 0.5, 0.95) == MAX_ROWS
