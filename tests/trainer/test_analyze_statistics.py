# SPDX-License-Identifier: Apache-2.0
"""The intervals by which a rollout is analyzed."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.stats import binom

from finetune_trainer.statistics.proportions import HistogramQuantile, IndependentProportions, Proportion

EDGES = (0.1, 0.25, 0.5, 1.0, math.inf)


def difference(right: int, rows: int, other_right: int, other_rows: int) -> IndependentProportions:
    return IndependentProportions(Proportion(right, rows), Proportion(other_right, other_rows))


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [((56, 70, 48, 80), 0.0528, 0.3382), ((9, 10, 3, 10), 0.1700, 0.8406), ((10, 10, 0, 20), 0.7156, 1.0)],
)
def test_the_interval_of_a_difference_is_the_published_one(
    counts: tuple[int, int, int, int], low: float, high: float
) -> None:
    """Newcombe, R. G. (1998). Statistics in Medicine 17(8), 873-890, table II, method 6."""
    interval = difference(*counts).interval(0.95)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=6e-5)


def test_the_interval_of_a_difference_turns_around_with_it() -> None:
    one, other = difference(4, 50, 1, 400).interval(0.9), difference(1, 400, 4, 50).interval(0.9)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=1e-9)


@pytest.mark.parametrize("counts", [(0, 20, 0, 20), (20, 20, 20, 20), (0, 1, 1, 1)])
def test_a_difference_of_extreme_shares_has_an_interval_that_contains_it(
    counts: tuple[int, int, int, int],
) -> None:
    found = difference(*counts)
    interval = found.interval(0.95)
    assert -1 <= interval.low <= found.value <= interval.high <= 1
    assert interval.low < interval.high


@pytest.mark.parametrize(("share", "other_share"), [(0.01, 0.01), (0.05, 0.01), (0.2, 0.2)])
def test_the_interval_of_a_difference_covers_what_it_states(share: float, other_share: float) -> None:
    """The exact coverage for 40 and 120 rows, over all outcomes that are not very unlikely."""
    rows, other_rows, covered, total = 40, 120, 0.0, 0.0
    for right in range(rows + 1):
        for other_right in range(other_rows + 1):
            probability = binom.pmf(right, rows, share) * binom.pmf(other_right, other_rows, other_share)
            if probability < 1e-5:
                continue
            interval = difference(right, rows, other_right, other_rows).interval(0.95)
            total += probability
            covered += probability * (interval.low <= share - other_share <= interval.high)
    assert total > 0.99
    assert covered / total > 0.93


def histogram(
    values: Sequence[float], quantile: float = 0.95, groups: int | None = None
) -> HistogramQuantile:
    counts = tuple(sum(value <= edge for value in values) for edge in EDGES)
    return HistogramQuantile(EDGES, counts, quantile, groups)


def test_a_quantile_is_interpolated_in_its_bucket() -> None:
    assert histogram([0.05] * 90 + [0.4] * 10).value == pytest.approx(0.25 + 0.25 * 5 / 10)
    assert histogram([0.05] * 10, 0.5).value == pytest.approx(0.05)


def test_a_quantile_above_the_highest_edge_is_that_edge() -> None:
    assert histogram([5.0] * 10).value == 1.0
    assert histogram([5.0] * 10).interval(0.9).high == math.inf


def test_the_interval_of_a_quantile_narrows_to_its_bucket() -> None:
    few, many = [0.05] * 9 + [0.4], ([0.05] * 90 + [0.4] * 10) * 20
    assert (histogram(few).interval(0.9).low, histogram(few).interval(0.9).high) == (0.0, math.inf)
    assert (histogram(many).interval(0.9).low, histogram(many).interval(0.9).high) == (0.25, 0.5)


def test_the_interval_of_a_quantile_covers_at_least_what_it_states() -> None:
    generator, covered = np.random.default_rng(3), 0
    truth = math.log(20) * 0.2  # of an exponential distribution with mean 0.2
    for _ in range(200):
        interval = histogram(list(generator.exponential(0.2, 60))).interval(0.9)
        covered += interval.low <= truth <= interval.high
    assert covered >= 180


@pytest.mark.parametrize(("groups", "covers"), [(60, True), (None, False)])
def test_the_interval_of_equal_values_in_groups_needs_their_number(
    groups: int | None, *, covers: bool
) -> None:
    generator, covered = np.random.default_rng(3), 0
    truth = math.log(20) * 0.165  # just below an edge, of an exponential distribution with mean 0.165
    for _ in range(200):
        values = np.repeat(generator.exponential(0.165, 60), 20)
        interval = histogram(list(values), groups=groups).interval(0.9)
        covered += interval.low <= truth <= interval.high
    assert (covered >= 180) is covers


def test_groups_change_no_value() -> None:
    values = [0.05] * 90 + [0.4] * 10
    assert histogram(values, groups=7).value == histogram(values).value
    assert histogram(values, groups=7).rows == 7
    assert histogram(values, groups=700).rows == 100
