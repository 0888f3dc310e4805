# SPDX-License-Identifier: Apache-2.0
"""Metrics of classifications: each equals scikit-learn, to the last digit."""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from finetune_trainer.evaluate.examples import Example
from finetune_trainer.evaluate.measure import MeasuredRow, label_names
from finetune_trainer.evaluate.measurement_log import RowPrediction
from finetune_trainer.evaluate.metrics.registry import measures_of
from finetune_trainer.scoring.metric_scope import MetricScope
from finetune_trainer.scoring.text_comparison import LabelSet
from finetune_trainer.tokens.encoding import EncodedRow

NAMES: Final = ("billing", "sales", "请假", "配送")
NO_LABEL: Final = "I cannot say"
SCOPE: Final = MetricScope(labels=LabelSet(NAMES))
Pairs = Sequence[tuple[str, str]]


def rows_of(pairs: Pairs) -> list[MeasuredRow]:
    """Rows with the expected and the answered text."""
    rows = []
    for number, (expected, answer) in enumerate(pairs, 1):
        example = Example(number, EncodedRow([1], [1]), [1], 1, frozenset({expected}))
        prediction = RowPrediction(subject="Tuned", row=number, text=answer, metrics={})
        rows.append(MeasuredRow(example, prediction, float(expected == answer), 1))
    return rows


def score(metric: str, rows: Sequence[MeasuredRow], scope: MetricScope = SCOPE) -> float:
    measure = measures_of((metric,), scope)[metric]
    return measure.score_of(measure.table(rows))


PAIRS: Final = st.lists(
    st.tuples(st.sampled_from(NAMES), st.sampled_from((*NAMES, NO_LABEL))), min_size=1, max_size=40
)


@settings(max_examples=40)
@given(PAIRS)
def test_accuracy_and_macro_f1_are_those_of_scikit_learn(pairs: Pairs) -> None:
    expected, answered = zip(*pairs, strict=True)
    macro_f1 = sklearn_metrics.f1_score(
        expected, answered, labels=NAMES, average="macro", zero_division=np.nan
    )

    assert score("accuracy", rows_of(pairs)) == sklearn_metrics.accuracy_score(expected, answered)
    assert score("macro_f1", rows_of(pairs)) == macro_f1


@settings(max_examples=20)
@given(st.integers(9, 64), st.data())
def test_macro_f1_is_that_of_scikit_learn_for_many_labels(count: int, data: st.DataObject) -> None:
    names = tuple(f"label {index}" for index in range(count))
    pairs = data.draw(
        st.lists(st.tuples(st.sampled_from(names), st.sampled_from(names)), min_size=1, max_size=60)
    )
    expected, answered = zip(*pairs, strict=True)
    macro_f1 = sklearn_metrics.f1_score(
        expected, answered, labels=names, average="macro", zero_division=np.nan
    )

    assert score("macro_f1", rows_of(pairs), MetricScope(labels=LabelSet(names))) == macro_f1


def test_an_answer_that_names_no_label_is_wrong_and_lowers_the_f1_of_the_expected_one() -> None:
    rows = rows_of([("billing", "billing"), ("billing", NO_LABEL), ("sales", "")])

    assert score("accuracy", rows) == 1 / 3
    assert score("macro_f1", rows) == (2 / 3 + 0) / 2
    assert [label_names(SCOPE, row) for row in rows] == [
        ("billing", "billing"),
        ("billing", None),
        ("sales", None),
    ]


def test_a_rare_label_counts_as_much_as_a_frequent_one() -> None:
    rows = rows_of([*[("billing", "billing")] * 9, ("sales", "billing")])

    assert score("accuracy", rows) == 0.9
    assert score("macro_f1", rows) == pytest.approx((18 / 19 + 0) / 2)


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("billing", 0),
        ("Billing.", 0),
        (" SALES ", 1),
        ("请假。", 2),
        ("billing or sales", None),
        ("The answer is billing", None),
        ("", None),
    ],
)
def test_an_answer_names_a_label_as_a_whole(answer: str, label: int | None) -> None:
    assert LabelSet(NAMES).index(answer) == label


def test_labels_that_differ_only_in_case_are_compared_exactly() -> None:
    labels = LabelSet(("A", "a", "B"))

    assert [labels.index(text) for text in ("A", "a", "b", "a.")] == [0, 1, 2, None]


def test_of_several_accepted_labels_the_answered_one_is_the_correct_one() -> None:
    (row,) = rows_of([("billing", "sales")])
    example = Example(1, row.example.encoded, [1], 1, frozenset({"sales", "billing"}))
    both = MeasuredRow(example, row.prediction, 1, 1)

    assert score("macro_f1", [both]) == 1
    assert label_names(SCOPE, both) == ("sales", "sales")


def test_a_constrained_answer_is_the_chosen_label_and_not_the_text() -> None:
    (row,) = rows_of([("sales", "billing")])
    prediction = row.prediction.model_copy(update={"choice": 1})
    scope = MetricScope(labels=LabelSet(NAMES), constrained_labels=True)

    assert score("macro_f1", [MeasuredRow(row.example, prediction, 1, 1)], scope) == 1
    assert score("macro_f1", [row], scope) == 0


def test_the_score_of_a_sample_follows_from_its_sums() -> None:
    """What a bootstrap interval computes: rows drawn with replacement, as counts per row."""
    rows = rows_of([("billing", "billing"), ("sales", "billing"), ("请假", "请假")])
    measure = measures_of(("macro_f1",), SCOPE)["macro_f1"]
    table, drawn = measure.table(rows), [0, 0, 1]

    sample = np.bincount(drawn, minlength=len(rows)) @ table

    assert measure.score(sample) == measure.score_of(measure.table([rows[index] for index in drawn]))
    assert not math.isnan(measure.score(sample))
