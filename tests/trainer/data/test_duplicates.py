# SPDX-License-Identifier: Apache-2.0
"""Selection of the rows to keep among similar rows."""

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.contract.dataset import Cleaning
from finetune_trainer.contract.vocabulary import NearDuplicates as Option
from finetune_trainer.contract.vocabulary import SplitName
from finetune_trainer.data import duplicates
from finetune_trainer.data.duplicates import Selection, select
from finetune_trainer.data.result import DuplicatePair, NearSearch
from finetune_trainer.data.row_index import RowIndex, answer_digest, input_digest
from finetune_trainer.data.row_problems import RowPosition
from finetune_trainer.rows import Message, Row
from tests.trainer.data.reading import reader

LONG = "my parcel was sent last week and it still has not come to my door in the old town"


def test_the_first_of_equal_rows_is_kept() -> None:
    selection = _select([("a", "b"), ("a", "b"), ("c", "b"), ("a", "b")])

    assert selection.keep.tolist() == [True, False, True, False]
    assert selection.duplicates == 2
    assert selection.example_pairs == (
        DuplicatePair("Exact", _place(2), _place(1)),
        DuplicatePair("Exact", _place(4), _place(1)),
    )


def test_a_row_whose_input_is_held_out_is_removed_from_training() -> None:
    selection = _select(
        [("a", "b"), ("a", "other"), ("a", "b"), ("c", "d")], ["train", "train", "test", "train"]
    )

    assert selection.keep.tolist() == [False, False, True, True]
    assert (selection.leaked, selection.duplicates, selection.conflicting) == (2, 0, 0)
    assert selection.example_pairs == (
        DuplicatePair("Leak", _place(1), _place(3)),
        DuplicatePair("Leak", _place(2), _place(3)),
    )


def test_test_comes_before_validation_and_validation_before_training() -> None:
    selection = _select(
        [("a", "b")] * 3 + [("c", "d")] * 2, ["train", "validation", "test", "train", "validation"]
    )

    assert selection.keep.tolist() == [False, False, True, False, True]


def test_other_answers_to_an_input_are_reported_and_kept() -> None:
    selection = _select([("a", "b"), ("a", "c"), ("a", "d"), ("a", "d"), ("e", "f")])

    assert selection.keep.tolist() == [True, True, True, False, True]
    assert selection.conflicting == 2
    assert DuplicatePair("Conflict", _place(2), _place(1)) in selection.example_pairs


def test_an_answer_with_both_labels_conflicts_and_another_answer_does_not() -> None:
    rows = [
        replace(Row.pair("a", answer), form="KTO", label=label)
        for answer, label in (("b", True), ("c", False), ("b", False), ("b", True))
    ]

    selection = _select_rows(rows)

    assert (selection.conflicting, selection.duplicates) == (1, 1)
    assert DuplicatePair("Conflict", _place(3), _place(1)) in selection.example_pairs


def test_the_same_two_answers_preferred_both_ways_conflict_and_others_do_not() -> None:
    rows = [
        replace(Row.pair("a", chosen), form="Preference", rejected=rejected)
        for chosen, rejected in (("b", "c"), ("b", "d"), ("c", "b"), ("d", "c"))
    ]

    selection = _select_rows(rows)

    assert selection.conflicting == 1
    assert DuplicatePair("Conflict", _place(3), _place(1)) in selection.example_pairs


@pytest.mark.parametrize(
    "twin",
    ["Caf\u0065\u0301 au lait", "Caf\u00e9\u200b au lait", "Caf\u00e9  au lait ", "Caf\u00e9 au\u00a0lait"],
    ids=["decomposed", "zero width", "blanks", "no-break space"],
)
def test_a_training_row_that_looks_the_same_as_a_held_out_row_is_removed(twin: str) -> None:
    rows = [Row.pair(twin, "a"), Row.pair("Caf\u00e9 au lait", "b")]

    selection = _select_rows(rows, ["train", "test"], "Off")

    assert selection.keep.tolist() == [False, True]
    assert selection.example_pairs == (DuplicatePair("Leak", _place(1), _place(2)),)


@pytest.mark.parametrize(
    "twin",
    [
        "WHEN DOES THE BOAT LEAVE?",
        "When does the boat leave",
        "when does the boat leave!",
        "“When does the boat leave?”",
    ],
    ids=["case", "no mark", "another mark", "quotes"],
)
@pytest.mark.parametrize("answer", ["By ten.", "By ten .", "BY TEN.", "Never."])
def test_a_training_row_whose_input_differs_only_in_case_or_marks_is_removed(twin: str, answer: str) -> None:
    rows = [Row.pair(twin, answer), Row.pair("When does the boat leave?", "By ten.")]

    selection = _select_rows(rows, ["train", "test"], "Off")

    assert selection.keep.tolist() == [False, True]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1 + 2 =", "1 - 2 ="),
        ("x[0]", "x(0)"),
        (".5 of it", "5 of it"),
        ("a.b", "ab"),
        ("?", "!"),
        ("-3", "3"),
    ],
)
def test_inputs_whose_symbols_differ_are_different(one: str, other: str) -> None:
    rows = [Row.pair(one, "a"), Row.pair(other, "a")]

    assert _select_rows(rows, ["train", "test"], "Off").keep.all()


@pytest.mark.parametrize("answer", ["Dispatch  now.", "dispatch now ."], ids=["case and spaces", "a space"])
def test_a_near_training_row_whose_answer_differs_in_case_and_spaces_is_removed(answer: str) -> None:
    rows = [Row.pair(f"{LONG} please", answer), Row.pair(LONG, "dispatch now.")]

    selection = _select_rows(rows, ["train", "test"])

    assert selection.keep.tolist() == [False, True]
    assert selection.example_pairs == (DuplicatePair("NearLeak", _place(1), _place(2)),)


def test_distinct_short_texts_with_one_answer_are_kept() -> None:
    first = ["printer", "router", "laptop", "screen", "mouse", "phone"]
    second = ["broken", "missing", "slow", "stolen", "loud", "hot"]
    rows = [Row.pair(f"{one} {two}", "hardware") for one in first for two in second]
    splits: list[SplitName] = [("train", "train", "test")[number % 3] for number in range(len(rows))]

    selection = _select_rows(rows, splits)

    assert selection.keep.all()


def test_examples_are_limited_and_name_their_files_and_all_pairs_are_available() -> None:
    index = RowIndex()
    for record in range(200):
        index.add(Row.pair("a", "b"), "train", record % 2, record // 2 + 1)

    selection = select(
        index,
        reader([]),
        Cleaning(near_duplicates="Off"),
        [RowPosition("one.jsonl"), RowPosition("two.jsonl")],
    )

    assert selection.duplicates == len(list(selection.all_pairs())) == 199
    assert len(selection.example_pairs) == 100
    assert selection.example_pairs[0] == DuplicatePair(
        "Exact", RowPosition("two.jsonl", 1), RowPosition("one.jsonl", 1)
    )


def test_near_duplicates_are_kept_or_removed_as_the_recipe_specifies() -> None:
    rows = [(LONG, "dispatch"), (f"{LONG} please", "dispatch"), (f"{LONG} thanks", "refund")]

    assert _select(rows, option="Keep").keep.tolist() == [True, True, True]
    assert _select(rows, option="Keep").near_duplicates == 1
    removed = _select(rows, option="Remove")
    assert removed.keep.tolist() == [True, False, True]
    assert removed.example_pairs == (DuplicatePair("Near", _place(2), _place(1)),)
    assert _select(rows, option="Off").near_duplicates is None


def test_training_rows_near_to_a_test_row_are_removed_unless_the_answer_differs() -> None:
    rows = [(LONG, "dispatch"), (f"{LONG} please", "dispatch"), (f"{LONG} thanks", "refund")]
    splits: list[SplitName] = ["train", "test", "train"]

    kept = _select(rows, splits, "Keep")

    assert kept.keep.tolist() == [False, True, True]
    assert (kept.near_leaked, kept.near_duplicates) == (1, 0)
    assert kept.example_pairs == (DuplicatePair("NearLeak", _place(1), _place(2)),)
    assert _select(rows, splits, "Off").keep.all()


def test_exact_duplicates_are_not_near_duplicates() -> None:
    selection = _select([(LONG, "a"), (LONG, "a")], option="Remove")

    assert (selection.duplicates, selection.near_duplicates) == (1, 0)


def test_a_search_that_needs_too_much_memory_compares_some_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "MAX_BYTES", 0)
    monkeypatch.setattr(duplicates, "MIN_ROWS", 6)
    rare = [Row.pair(f"{LONG} {number}", "rare") for number in range(2)]
    common = [Row.pair(f"{LONG} {number}", "common") for number in range(10, 17)]
    splits: list[SplitName] = ["train", "train", "test", "test", "test", "train", "train", "train", "train"]

    selection = _select_rows([*rare, *common], splits, option="Remove")

    assert selection.near_search == NearSearch(rows=6, of_rows=9)
    # Both rare rows are compared, and two held-out and two training rows with the common answer.
    assert selection.keep.tolist() == [True, False, True, False, True, False, False, True, True]
    assert (selection.near_duplicates, selection.near_leaked) == (2, 2)


def test_the_memory_of_a_search_is_limited_by_the_number_of_all_rows() -> None:
    def compared(rows: int) -> int:
        answers = np.zeros(rows, dtype=np.int32)
        held_out = np.arange(rows) < rows // 10
        chosen = duplicates.limit_to_memory(np.arange(rows), answers, held_out)
        assert (np.diff(chosen) > 0).all()
        return len(chosen)

    assert compared(200_000) == 200_000
    assert compared(1_000_000) == ((1 << 30) - 140_000_000) // 5120
    assert compared(6_000_000) == 50_000


def test_rows_with_a_unique_answer_are_not_read_again_and_are_not_compared() -> None:
    rows = [Row.pair(f"{LONG} {number}", str(number)) for number in range(5)]

    selection = _select_rows(rows, option="Remove")

    assert selection.near_duplicates == 0
    assert selection.near_search == NearSearch(rows=0, of_rows=0)


def test_a_training_row_of_the_group_of_a_held_out_row_is_removed() -> None:
    rows = [Row.pair(f"question {number}", f"answer {number}") for number in range(4)]
    index = RowIndex()
    index.add(rows[0], "test", 0, 1, group="7")
    index.add(rows[1], "train", 0, 2, group=7)
    index.add(rows[2], "train", 0, 3, group="8")
    index.add(rows[3], "train", 0, 4)

    selection = select(index, reader(rows), Cleaning(), [RowPosition()])

    assert selection.keep.tolist() == [True, False, True, True]
    assert selection.leaked == 1
    assert selection.example_pairs == (DuplicatePair("GroupLeak", _place(2), _place(1)),)


def test_an_empty_index_has_an_empty_selection() -> None:
    assert _select([]).keep.tolist() == []


def test_the_input_is_what_the_model_sees_and_the_answer_is_the_rest() -> None:
    row = Row(
        (Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d"))
    )
    context = replace(
        row, messages=(row.messages[0], replace(row.messages[1], learned=False), *row.messages[2:])
    )
    inputs = [
        row,
        replace(row, tools="[]"),
        replace(row, messages=(Message("user", "x"), *row.messages[1:])),
        Row((Message("user", "a"), Message("user", "b"), Message("user", "c"), Message("assistant", "d"))),
        Row((Message("user", "a"), Message("assistant", "b", tool_calls="[]"), *row.messages[2:])),
    ]
    answers = [row, context, replace(row, rejected="e"), replace(row, label=True), replace(row, label=False)]

    assert len({input_digest(each) for each in inputs}) == len(inputs)
    assert len({answer_digest(each) for each in answers}) == len(answers)
    assert input_digest(row) == input_digest(context)


@given(
    rows=st.lists(
        st.tuples(
            st.sampled_from("abc"), st.sampled_from("xy"), st.sampled_from(["train", "validation", "test"])
        ),
        max_size=40,
    ),
    shuffle=st.randoms(use_true_random=False),
)
def test_each_row_is_kept_once_and_each_input_in_one_split_in_any_order(
    rows: list[tuple[str, str, SplitName]], shuffle: random.Random
) -> None:
    def kept(rows: list[tuple[str, str, SplitName]]) -> set[tuple[str, str, SplitName]]:
        selection = _select([row[:2] for row in rows], [row[2] for row in rows])
        left = [row for row, keep in zip(rows, selection.keep, strict=True) if keep]
        assert len(left) == len(set(left))
        assert selection.leaked + selection.duplicates == len(rows) - len(left)
        return set(left)

    before = kept(rows)
    shuffle.shuffle(rows)

    assert kept(rows) == before
    assert {prompt for prompt, _, _ in before} == {prompt for prompt, _, _ in rows}
    assert len({(prompt, split) for prompt, _, split in before}) == len({prompt for prompt, _, _ in before})


def _select(
    pairs: list[tuple[str, str]], splits: list[SplitName] | None = None, option: Option = "Keep"
) -> Selection:
    return _select_rows([Row.pair(*pair) for pair in pairs], splits, option)


def _select_rows(
    rows: list[Row],
    splits: list[SplitName] | None = None,
    option: Option = "Keep",
) -> Selection:
    index = RowIndex()
    for number, row in enumerate(rows):
        index.add(row, splits[number] if splits else "train", 0, number + 1)
    return select(index, reader(rows), Cleaning(near_duplicates=option), [RowPosition()])


def _place(record: int) -> RowPosition:
    return RowPosition(None, record)
