# SPDX-License-Identifier: Apache-2.0
"""How many rows which claim needs, and what a number of rows shows."""

from collections.abc import Callable
from typing import Final

from finetune_trainer.statistics.estimate import MAX_ROWS, POWER, compute_needed_rows, one_sided
from finetune_trainer.statistics.proportions import PairedProportions, Proportion
from tools.bench.sheet import Sheet

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
