# SPDX-License-Identifier: Apache-2.0
"""Rows that a claim needs, and how often the intervals contain the true value."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
from scipy.stats import binom

from finetune_trainer.statistics.bootstrap import Resampled, bootstrap_mean
from finetune_trainer.statistics.estimate import (
    MAX_ROWS,
    POWER,
    SHOWN_LEVEL,
    Estimate,
    compute_needed_rows,
    one_sided,
)
from finetune_trainer.statistics.proportions import PairedProportions, Proportion
from tools.bench.page import Sheet

CONFIDENCE: Final = 0.95
MANY: Final = 1_000_000
"""Rows of a figure that is known exactly."""
SHARES: Final = (0.7, 0.8, 0.9, 0.95, 0.99)
DISTANCES: Final = (0.2, 0.1, 0.05, 0.02, 0.01)
DIFFERING: Final = (0.1, 0.2, 0.4)
GAINS: Final = (0.2, 0.1, 0.05, 0.02, 0.01)
MEASURED_ROWS: Final = (20, 50, 100, 200, 500, 1000, 2000)
MEASURED_SHARES: Final = (0.8, 0.9, 0.95, 1.0)


def row_sheets() -> list[Sheet]:
    """The tables of the page."""
    return [_bounds(), _shares(), _gains()]


def _bounds() -> Sheet:
    return Sheet(
        f"Lower bound of a share at confidence {CONFIDENCE}, by the measured share",
        ("rows", *(f"{share:.0%}" for share in MEASURED_SHARES)),
        tuple(
            (
                f"{rows:,}",
                *(
                    f"{one_sided(Proportion(round(share * rows), rows), CONFIDENCE).low:.3f}"
                    for share in MEASURED_SHARES
                ),
            )
            for rows in MEASURED_ROWS
        ),
    )


def _shares() -> Sheet:
    return Sheet(
        f"Rows with which a gate with min passes with probability {POWER:.0%}, confidence {CONFIDENCE}",
        ("true share", *(f"min {distance:g} below it" for distance in DISTANCES)),
        tuple((f"{share:g}", *_cells(DISTANCES, _share_cell(share))) for share in SHARES),
    )


def _gains() -> Sheet:
    return Sheet(
        f"Rows with which a gate with minGain 0 passes with probability {POWER:.0%}, confidence {CONFIDENCE}",
        ("rows on which only one model is right", *(f"true gain {gain:g}" for gain in GAINS)),
        tuple((f"{differing:.0%}", *_cells(GAINS, _gain_cell(differing))) for differing in DIFFERING),
    )


def _share_cell(share: float) -> Callable[[float], int | None]:
    known = Proportion(round(share * MANY), MANY)
    return lambda distance: compute_needed_rows(known, share - distance, CONFIDENCE)


def _gain_cell(differing: float) -> Callable[[float], int | None]:
    def cell(gain: float) -> int | None:
        if gain > differing:
            return None
        gained = round((differing + gain) / 2 * MANY)
        return compute_needed_rows(
            PairedProportions(gained, round(differing * MANY) - gained, MANY), 0, CONFIDENCE
        )

    return cell


def _cells(values: tuple[float, ...], cell: Callable[[float], int | None]) -> list[str]:
    found = [cell(value) for value in values]
    return ["–" if rows is None or rows >= MAX_ROWS else f"{rows:,}" for rows in found]


ROWS: Final = (20, 50, 200, 1000)
VALUES: Final = (0.5, 0.8, 0.95)
SKEWS: Final = (0.5, 1.0)
"""Standard deviations of the logarithm of skewed values, such as losses."""
GAIN: Final = 0.1
"""Of the first model over the second, in samples of pairs."""
CORRELATION: Final = 0.5
"""Of the outcomes of one row with two models."""
CONCENTRATION: Final = 4
"""Sum of the parameters of the beta distribution that values of rows have."""
NEGLIGIBLE: Final = 1e-9
"""Probability of an outcome that is left out."""


@dataclass(frozen=True, slots=True)
class Coverage:
    """Shares of samples whose interval or bound holds."""

    two_sided: float
    lower: float
    """Of the one-sided lower bound."""
    upper: float

    def __str__(self) -> str:
        return " · ".join(f"{100 * share:.1f}" for share in (self.two_sided, self.lower, self.upper))


def coverage_sheets(samples: int) -> list[Sheet]:
    """The coverage of all methods for `ROWS`, by `VALUES` or `SKEWS`, in percent."""
    methods: dict[str, Callable[[int, float], Coverage]] = {
        "share (Wilson, Clopper–Pearson)": of_proportions,
        f"gain of {GAIN} in a share (Tango)": partial(of_pairs, samples=samples),
        "mean (bootstrap)": partial(of_means, samples=samples),
    }
    cell = f"two-sided at {SHOWN_LEVEL:.0%} · one-sided lower · upper bound at {CONFIDENCE:.0%}"
    return [
        Sheet(
            f"Coverage in %: {cell}",
            ("figure", "rows", *(f"true value {value}" for value in VALUES)),
            tuple(
                (name, f"{rows:,}", *(str(covered(rows, value)) for value in VALUES))
                for name, covered in methods.items()
                for rows in ROWS
            ),
        ),
        Sheet(
            f"Coverage in % of the mean of log-normal values: {cell}",
            ("rows", *(f"σ of the logarithm {skew:g}" for skew in SKEWS)),
            tuple(
                (f"{rows:,}", *(str(of_skewed_means(rows, skew, samples=samples)) for skew in SKEWS))
                for rows in ROWS
            ),
        ),
    ]


def of_proportions(rows: int, share: float) -> Coverage:
    """Cover a share of right rows, exactly: over all counts of right rows with their probabilities."""
    chances = binom.pmf(range(rows + 1), rows, share)
    return _coverage(
        share,
        (
            (float(chance), Proportion(right, rows))
            for right, chance in enumerate(chances)
            if chance > NEGLIGIBLE
        ),
    )


def of_pairs(rows: int, share: float, samples: int) -> Coverage:
    """Cover the gain of a model that answers `share` of the rows right over one with `GAIN` less."""
    other = share - GAIN
    both = share * other + CORRELATION * math.sqrt(share * (1 - share) * other * (1 - other))
    chances = (share - both, other - both, 1 - share - other + 2 * both)
    drawn = np.random.default_rng(rows).multinomial(rows, chances, samples)
    tables, counts = np.unique(drawn[:, :2], axis=0, return_counts=True)
    return _coverage(
        GAIN,
        (
            (float(count) / samples, PairedProportions(int(gained), int(lost), rows))
            for (gained, lost), count in zip(tables, counts, strict=True)
        ),
    )


def of_means(rows: int, mean: float, samples: int) -> Coverage:
    """Cover the mean of values between 0 and 1 that have a beta distribution."""
    random = np.random.default_rng(rows)
    first, second = CONCENTRATION * mean, CONCENTRATION * (1 - mean)

    def sample() -> Resampled:
        return bootstrap_mean(random.beta(first, second, rows), None, (0, 1))

    return _coverage(mean, ((1 / samples, sample()) for _ in range(samples)))


def of_skewed_means(rows: int, deviation: float, samples: int) -> Coverage:
    """Cover the mean of values above 0 whose logarithm is normal with this standard deviation."""
    random = np.random.default_rng(rows)

    def sample() -> Resampled:
        return bootstrap_mean(random.lognormal(sigma=deviation, size=rows), None, (0, math.inf))

    return _coverage(math.exp(deviation**2 / 2), ((1 / samples, sample()) for _ in range(samples)))


def _coverage(truth: float, outcomes: Iterable[tuple[float, Estimate]]) -> Coverage:
    two_sided = lower = upper = 0.0
    for chance, estimate in outcomes:
        shown, bounds = estimate.interval(SHOWN_LEVEL), one_sided(estimate, CONFIDENCE)
        two_sided += chance * (shown.low <= truth <= shown.high)
        lower += chance * (bounds.low <= truth)
        upper += chance * (truth <= bounds.high)
    return Coverage(two_sided, lower, upper)
