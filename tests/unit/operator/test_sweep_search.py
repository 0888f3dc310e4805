# SPDX-License-Identifier: Apache-2.0
"""The values of trials, judged by SciPy's Halton sequence, and halving, judged by Optuna's pruner."""

import math
import random
from itertools import product
from typing import Any

import optuna
import pytest
from scipy.stats import qmc

from finetune_operator.api.finetune_sweep import EarlyStopping, SearchParameter
from finetune_operator.reconcile.finetunesweep.halving import continues, reached_rungs
from finetune_operator.reconcile.finetunesweep.search import (
    PRIMES,
    Value,
    grid_point,
    grid_size,
    radical_inverse,
    random_point,
)

RATE = SearchParameter(field="hyperparameters.learningRate", min=1e-5, max=1e-2, scale="Log")
RANK = SearchParameter(field="method.lora.r", values=(8, 16, 32))
SCHEDULER = SearchParameter(field="hyperparameters.scheduler", choices=("Linear", "Cosine"))


def test_the_points_are_those_of_the_halton_sequence() -> None:
    expected = qmc.Halton(len(PRIMES), scramble=False).random(65)[1:]
    for number, point in enumerate(expected, 1):
        assert [radical_inverse(number, base) for base in PRIMES] == pytest.approx(list(point))


def test_a_trial_has_the_values_of_its_number_and_of_the_seed() -> None:
    assert random_point(0, [RATE, RANK, SCHEDULER], 0) == {
        "hyperparameters.learningRate": 0.0002769,
        "method.lora.r": 16,
        "hyperparameters.scheduler": "Cosine",
    }
    assert random_point(5, [RATE, RANK], 1) == random_point(5, [RATE, RANK], 1)
    assert random_point(5, [RATE, RANK], 1) != random_point(5, [RATE, RANK], 2)


def test_the_shift_keeps_points_in_the_range_and_evenly_distributed() -> None:
    rates = [float(random_point(number, [RATE], 7)[RATE.field]) for number in range(64)]
    assert all(1e-5 <= rate <= 1e-2 for rate in rates)
    decades = [math.floor(math.log10(rate)) for rate in rates]
    assert all(20 <= decades.count(decade) <= 23 for decade in (-5, -4, -3))


def test_a_range_of_a_field_for_whole_numbers_has_whole_numbers() -> None:
    epochs = SearchParameter(field="hyperparameters.epochs", min=1, max=4)
    found = {random_point(number, [epochs], 0)[epochs.field] for number in range(32)}
    assert found == {1, 2, 3, 4}
    assert all(isinstance(each, int) for each in found)


def test_a_grid_has_each_combination_once() -> None:
    parameters = [RANK, SCHEDULER]
    assert grid_size(parameters) == 6
    points = [tuple(grid_point(number, parameters).values()) for number in range(6)]
    assert points == list(product((8, 16, 32), ("Linear", "Cosine")))
    with pytest.raises(IndexError):
        grid_point(6, parameters)


def test_rungs_are_powers_of_the_factor_down_to_the_smallest_share() -> None:
    assert EarlyStopping().rungs == pytest.approx((1 / 9, 1 / 3))
    assert EarlyStopping(reduction_factor=2, min_fraction=0.2).rungs == (0.25, 0.5)
    assert reached_rungs((1 / 9, 1 / 3), 10, 90) == 1
    assert reached_rungs((1 / 9, 1 / 3), 9, 90) == 0
    assert reached_rungs((1 / 9, 1 / 3), 89, 90) == 2
    assert reached_rungs((1 / 9, 1 / 3), 5, 0) == 0


def curve(point: dict[str, Value], share: float, noise: random.Random) -> float:
    """A validation loss that falls to a bowl in the learning rate; ties are frequent."""
    off = math.log10(float(point[RATE.field])) - math.log10(3e-4)
    progress = math.exp(-share * (2.5 + 1.5 * min(0, off)))
    return round(0.4 + 0.5 * off * off + 2 * progress + noise.gauss(0, 0.01), 2)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_trials_continue_as_optunas_pruner_decides(factor: int) -> None:
    """In 10,000 simulated trials with all factors together, in studies of 24."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    stopped = trials = 0
    for seed in range(139):
        rungs = EarlyStopping(reduction_factor=factor, min_fraction=0.05).rungs
        noise = random.Random(seed)  # noqa: S311 - simulated measurements
        reached: list[list[float]] = [[] for _ in rungs]
        study = study_of(factor)
        for number in range(24):
            trial, point = study.ask(), random_point(number, [RATE, RANK], seed)
            trials += 1
            for rung, share in enumerate(rungs):
                loss = curve(point, share, noise)
                trial.report(loss, factor**rung)  # Optuna's rungs are powers of the factor.
                goes_on = continues(loss, reached[rung], factor)
                assert goes_on != trial.should_prune(), f"seed {seed}, trial {number}, rung {rung}"
                reached[rung].append(loss)
                if not goes_on:
                    stopped += 1
                    study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                    break
            else:
                study.tell(trial, curve(point, 1, noise))
    assert trials == 3336
    assert trials / 3 < stopped < trials


def study_of(factor: int) -> Any:
    pruner = optuna.pruners.SuccessiveHalvingPruner(
        min_resource=1, reduction_factor=factor, min_early_stopping_rate=0
    )
    return optuna.create_study(direction="minimize", pruner=pruner)
