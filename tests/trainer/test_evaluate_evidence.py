# SPDX-License-Identifier: Apache-2.0
"""What the rows of an evaluation say about scores and gates."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from finetune_trainer.contract.evaluation import GateBound, GateEvidence
from finetune_trainer.contract.metrics import METRICS, Metric
from finetune_trainer.contract.results import Score
from finetune_trainer.contract.vocabulary import Subject
from finetune_trainer.evaluate.estimates import Estimates, RowValues, compute_evidence, compute_scores
from finetune_trainer.evaluate.examples import Example
from finetune_trainer.evaluate.measure import Measure
from finetune_trainer.evaluate.measurement_log import RowPrediction
from finetune_trainer.evaluate.metrics.registry import MEASURES
from finetune_trainer.statistics.bootstrap import MIN_UNITS, Groups
from finetune_trainer.statistics.estimate import SHOWN_LEVEL, ConfidenceInterval, one_sided
from finetune_trainer.statistics.proportions import PairedProportions, Proportion
from finetune_trainer.tokens.encoding import EncodedRow

Values = Sequence[float]
OF_VALUES = [
    name
    for name, info in METRICS.items()
    if info.kind != "Aggregate" and "json" not in info.needs and isinstance(MEASURES[name], Measure)
]
"""Metrics that need the values of the rows only."""


def estimates(
    metric: Metric,
    values: Mapping[Subject, Values],
    *,
    groups: Groups | None = None,
    tokens: Sequence[int] | None = None,
) -> Estimates:
    """The estimates for values of rows, of which each has so many labelled tokens, or one."""
    rows = range(1, len(values["Tuned"]) + 1)
    lengths = tokens or [1] * len(rows)
    examples = [
        Example(row, EncodedRow([0] * (n + 1), [-100] + [0] * n), [0], n, frozenset())
        for row, n in zip(rows, lengths, strict=True)
    ]
    measured = {
        subject: {
            row: RowPrediction(subject=subject, row=row, metrics={metric: value})
            for row, value in zip(rows, each, strict=True)
        }
        for subject, each in values.items()
    }
    measure = MEASURES[metric]
    assert isinstance(measure, Measure)
    return Estimates(dict.fromkeys(values, examples), {metric: measure}, measured.__getitem__, groups)


def right(count: int, rows: int) -> list[float]:
    return [1.0] * count + [0.0] * (rows - count)


def evidence(
    made: Estimates, subjects: Sequence[Subject] = ("Tuned", "Base"), **gate: object
) -> GateEvidence:
    (metric,) = made.measures
    (found,) = compute_evidence([GateBound.model_validate({"metric": metric, **gate})], made, subjects)
    return found


def test_a_share_has_its_interval_and_a_gate_its_one_sided_bounds() -> None:
    made = estimates("exact_match", {"Tuned": right(34, 34)})

    (score,) = compute_scores(("Tuned",), made)
    found = evidence(made, ("Tuned",), min=0.95, confidence=0.95)

    assert score == Score(metric="exact_match", subject="Tuned", value=1, rows=34, low=0.897182, high=1)
    assert (found.low, found.high) == (0.91566, 1)
    assert found.gain is found.gain_low is found.gain_high is None
    assert not found.undecided


def test_rows_that_do_not_count_for_a_score_are_not_among_its_rows() -> None:
    """The answer of the second row has no token left after truncation."""
    (score,) = compute_scores(("Tuned",), estimates("loss", {"Tuned": [1.0, 9.0, 3.0]}, tokens=[2, 0, 2]))

    assert (score.value, score.rows) == (2, 2)


def test_a_gain_is_that_of_the_same_rows_of_both_models() -> None:
    tuned, base = right(70, 100), right(40, 100)
    base.reverse()
    made = estimates("exact_match", {"Tuned": tuned, "Base": base})
    # Rows 1 to 60 only the tuned model answers right, rows 71 to 100 only the base model.
    expected = one_sided(PairedProportions(60, 30, 100), 0.9)

    found = evidence(made, min_gain=0.1, over="Base", confidence=0.9)

    assert found.gain == pytest.approx(0.3)
    assert found.gain_low == pytest.approx(expected.low, abs=1e-6)
    assert found.gain_high == pytest.approx(expected.high, abs=1e-6)


def test_less_is_a_gain_where_lower_values_are_better() -> None:
    random = np.random.default_rng(1)
    base = random.uniform(2, 3, 60)
    made = estimates("loss", {"Tuned": list(base - random.uniform(0.4, 0.6, 60)), "Base": list(base)})

    found = evidence(made, min_gain=0.1, over="Base", confidence=0.95)

    assert found.gain is not None
    assert found.gain_low is not None
    assert found.gain_high is not None
    assert 0.4 < found.gain_low < found.gain < found.gain_high < 0.6


def test_rows_count_in_a_loss_by_their_tokens() -> None:
    random = np.random.default_rng(2)
    values, tokens = list(random.uniform(1, 3, 50)), [int(n) for n in random.integers(1, 40, 50)]
    made = estimates("loss", {"Tuned": values}, tokens=tokens)

    (score,) = compute_scores(("Tuned",), made)

    weighted = (value * n for value, n in zip(values, tokens, strict=True))
    assert score.value == math.fsum(weighted) / sum(tokens)
    assert score.low is not None
    assert score.high is not None
    assert score.low < score.value < score.high


def test_an_aggregate_has_the_interval_of_the_sums_that_it_is_computed_from() -> None:
    """Perplexity is exp(loss), and so are the percentiles of resampled rows."""
    losses, tokens = np.random.default_rng(3).uniform(1, 3, 50), [*range(1, 51)]
    of_loss = estimates("loss", {"Tuned": list(losses), "Base": list(losses + 0.5)}, tokens=tokens)
    perplexities: dict[Subject, Values] = {"Tuned": list(np.exp(losses)), "Base": list(np.exp(losses + 0.5))}
    of_perplexity = estimates("perplexity", perplexities, tokens=tokens)

    (loss, *_), (perplexity, *_) = (compute_scores(("Tuned",), made) for made in (of_loss, of_perplexity))
    found = evidence(of_perplexity, min_gain=0, over="Base", confidence=0.95)

    assert loss.low is not None
    assert loss.high is not None
    assert perplexity.value == pytest.approx(math.exp(loss.value))
    assert (perplexity.low, perplexity.high) == pytest.approx(
        (math.exp(loss.low), math.exp(loss.high)), rel=0.01
    )
    assert found.gain_low is not None
    assert found.gain_low > 0


def test_an_undecided_gate_says_how_many_more_rows_would_decide_it() -> None:
    made = estimates("exact_match", {"Tuned": right(43, 50)})

    found = evidence(made, ("Tuned",), min=0.8, confidence=0.95)

    assert found.low is not None
    assert found.low < 0.8
    assert found.more_rows is not None
    rows = 50 + found.more_rows
    assert one_sided(Proportion(round(0.86 * rows), rows), 0.95).low > 0.8


@pytest.mark.parametrize(
    "gate", [{"min": 0.5}, {"max": 0.5}, {"min": 0.86}, {"min_gain": 0.0, "over": "Base"}]
)
def test_more_rows_are_named_only_where_they_would_decide_a_gate(gate: dict[str, Any]) -> None:
    made = estimates("exact_match", {"Tuned": right(43, 50), "Base": right(0, 50)})

    assert evidence(made, confidence=0.95, **gate).more_rows is None


def test_a_gate_without_confidence_is_decided_by_the_values_alone() -> None:
    made = estimates("exact_match", {"Tuned": right(43, 50), "Base": right(20, 50)})

    found = evidence(made, min_gain=0.1, over="Base")

    assert found == GateEvidence(gate=0, value=found.value, gain=found.gain, rows=50)
    assert found.value == pytest.approx(0.86)
    assert found.gain == pytest.approx(0.46)


def test_a_model_that_was_not_measured_has_no_gain() -> None:
    made = estimates("exact_match", {"Tuned": right(43, 50)})

    found = evidence(made, ("Tuned",), min=0.5, min_gain=0.1, over="Live", confidence=0.95)

    assert found.gain is found.gain_low is None
    assert found.low is not None


def test_a_mean_of_few_rows_has_no_bounds_and_says_how_many_rows_it_needs() -> None:
    made = estimates("f1_token", {"Tuned": [0.5] * (MIN_UNITS - 3)})

    (score,) = compute_scores(("Tuned",), made)
    found = evidence(made, ("Tuned",), min=0.1, confidence=0.95)

    assert (score.low, score.high, found.low, found.high) == (None,) * 4
    assert found.more_rows == 3
    assert found.undecided.startswith("bounds need at least 20 rows, and 17 were measured")


def test_equal_values_without_a_max_have_no_bounds_but_equal_models_have_no_gain() -> None:
    made = estimates("answer_tokens", {"Tuned": [1.0] * 20, "Base": [1.0] * 20})

    (score,) = compute_scores(("Tuned",), made)
    found = evidence(made, ("Tuned",), max=5, confidence=0.99)

    assert (score.low, score.high, found.low, found.high) == (None,) * 4
    assert found.undecided.startswith("all 20 rows have the same value")
    gain = made.gain("answer_tokens", "Base")
    assert not made.shortage(gain)
    assert gain.interval(SHOWN_LEVEL) == ConfidenceInterval(0, 0)


def groups_of(rows: int, each: int) -> Groups:
    return Groups("customer", {row: f"c{(row - 1) // each}" for row in range(1, rows + 1)})


def columns_of(customer: str | None) -> dict[str, str]:
    return {"plan": "paid"} if customer is None else {"customer": customer, "plan": "paid"}


def test_the_group_of_a_row_is_its_kept_column() -> None:
    groups = Groups.of("customer", [columns_of("ann"), columns_of("bob"), columns_of("ann")])

    assert groups == Groups("customer", {1: "ann", 2: "bob", 3: "ann"})


def test_groups_of_which_one_is_missing_are_not_known() -> None:
    assert Groups.of("customer", [columns_of("ann"), columns_of(None)]) == Groups("customer", None)


def test_rows_of_one_group_count_as_one() -> None:
    values: dict[Subject, Values] = {"Tuned": right(160, 200)}

    independent = evidence(estimates("exact_match", values), ("Tuned",), min=0.7, confidence=0.95)
    grouped = evidence(
        estimates("exact_match", values, groups=groups_of(200, 8)), ("Tuned",), min=0.7, confidence=0.95
    )

    assert independent.low is not None
    assert grouped.low is not None
    assert grouped.low < independent.low - 0.05
    assert grouped.more_rows is not None
    assert grouped.more_rows > 100


def test_groups_of_one_row_are_independent_rows() -> None:
    values: dict[Subject, Values] = {"Tuned": right(160, 200)}

    grouped = estimates("exact_match", values, groups=groups_of(200, 1))

    assert list(compute_scores(("Tuned",), grouped)) == list(
        compute_scores(("Tuned",), estimates("exact_match", values))
    )


def test_few_groups_give_no_bounds_however_many_rows_they_have() -> None:
    made = estimates("exact_match", {"Tuned": right(160, 200)}, groups=groups_of(200, 20))

    found = evidence(made, ("Tuned",), min=0.5, confidence=0.95)

    assert found.low is None
    assert found.undecided.startswith("bounds need at least 20 groups of customer, and 10 were measured")
    assert found.more_rows == 200


def test_groups_that_are_not_recorded_leave_a_gate_undecided_with_what_to_do() -> None:
    made = estimates("exact_match", {"Tuned": right(160, 200)}, groups=Groups("customer", None))

    (score,) = compute_scores(("Tuned",), made)
    found = evidence(made, ("Tuned",), min=0.5, confidence=0.95)
    by_value = evidence(made, ("Tuned",), min=0.5)

    assert (score.low, score.high, found.low) == (None, None, None)
    assert "add customer to spec.keepColumns of the Dataset" in found.undecided
    assert not by_value.undecided


@pytest.mark.parametrize("metric", OF_VALUES)
def test_equal_models_have_no_gain_by_any_metric(metric: Metric) -> None:
    values = right(30, 40)

    found = evidence(
        estimates(metric, {"Tuned": values, "Base": values}), min_gain=0.0, over="Base", confidence=0.95
    )

    assert found.gain == 0
    assert found.gain_low is not None
    assert found.gain_high is not None
    assert found.gain_low <= 0 <= found.gain_high


@pytest.mark.parametrize(
    ("remedy", "words"),
    [(None, "raise the share of the split"), ("add rows to the files of the task", "files of the task")],
)
def test_too_few_rows_come_with_what_would_give_more(remedy: str | None, words: str) -> None:
    values: dict[tuple[Metric, Subject], dict[int, float]] = {
        ("task/science", "Tuned"): {number: number % 2 for number in range(MIN_UNITS - 1)}
    }
    measured = RowValues(values) if remedy is None else RowValues(values, remedy=remedy)
    gate = GateBound(metric="task/science", min=0.2, confidence=0.95)

    (found,) = compute_evidence([gate], measured, ("Tuned",))

    assert found.undecided is not None
    assert words in found.undecided
