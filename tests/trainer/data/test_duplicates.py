"""Which rows are kept of those that are alike."""

import random
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.data.duplicates import Selection, select
from finetune_trainer.data.index import RowIndex, answer_digest, input_digest
from finetune_trainer.data.options import NearDuplicates as Option
from finetune_trainer.data.problems import Place
from finetune_trainer.data.result import Kin
from finetune_trainer.data.similarity import NearDuplicates
from finetune_trainer.rows import Message, Row, SplitName

LONG = "my parcel was sent last week and it still has not come to my door in the old town"


def test_the_first_of_equal_rows_is_kept() -> None:
    selection = _select([("a", "b"), ("a", "b"), ("c", "b"), ("a", "b")])

    assert selection.keep.tolist() == [True, False, True, False]
    assert selection.duplicates == 2
    assert selection.kin == (Kin("Exact", _place(2), _place(1)), Kin("Exact", _place(4), _place(1)))


def test_a_row_that_another_split_measures_with_is_left_out_of_training() -> None:
    selection = _select(
        [("a", "b"), ("a", "other"), ("a", "b"), ("c", "d")], ["train", "train", "test", "train"]
    )

    assert selection.keep.tolist() == [False, False, True, True]
    assert (selection.leaked, selection.duplicates, selection.conflicting) == (2, 0, 0)
    assert selection.kin == (Kin("Leak", _place(1), _place(3)), Kin("Leak", _place(2), _place(3)))


def test_test_comes_before_validation_and_validation_before_training() -> None:
    selection = _select(
        [("a", "b")] * 3 + [("c", "d")] * 2, ["train", "validation", "test", "train", "validation"]
    )

    assert selection.keep.tolist() == [False, False, True, False, True]


def test_other_answers_to_an_input_are_told_and_kept() -> None:
    selection = _select([("a", "b"), ("a", "c"), ("a", "d"), ("a", "d"), ("e", "f")])

    assert selection.keep.tolist() == [True, True, True, False, True]
    assert selection.conflicting == 2
    assert Kin("Conflict", _place(2), _place(1)) in selection.kin


def test_preferences_and_judged_answers_may_have_several_answers() -> None:
    pair = Row.pair("a", "b")
    rows = [replace(pair, form="KTO", label=label) for label in (True, False, True)]

    selection = _select_rows(rows)

    assert (selection.conflicting, selection.duplicates) == (0, 1)


def test_examples_are_five_at_most_and_name_their_files() -> None:
    index = RowIndex()
    for record in range(20):
        index.add(Row.pair("a", "b"), "train", record % 2, record // 2 + 1)

    selection = select(index, None, "Off", ["one.jsonl", "two.jsonl"])

    assert selection.duplicates == 19
    assert len(selection.kin) == 5
    assert selection.kin[0] == Kin("Exact", Place("two.jsonl", 1), Place("one.jsonl", 1))


def test_near_duplicates_are_kept_or_left_out_as_asked() -> None:
    rows = [(LONG, "dispatch"), (f"{LONG} please", "dispatch"), (f"{LONG} thanks", "refund")]

    assert _select(rows, option="Keep").keep.tolist() == [True, True, True]
    assert _select(rows, option="Keep").near_duplicates == 1
    removed = _select(rows, option="Remove")
    assert removed.keep.tolist() == [True, False, True]
    assert removed.kin == (Kin("Near", _place(2), _place(1)),)
    assert _select(rows, option="Off").near_duplicates is None


def test_training_rows_near_to_a_test_row_are_left_out_unless_the_answer_differs() -> None:
    rows = [(LONG, "dispatch"), (f"{LONG} please", "dispatch"), (f"{LONG} thanks", "refund")]
    splits: list[SplitName] = ["train", "test", "train"]

    kept = _select(rows, splits, "Keep")

    assert kept.keep.tolist() == [False, True, True]
    assert (kept.near_leaked, kept.near_duplicates) == (1, 0)
    assert kept.kin == (Kin("NearLeak", _place(1), _place(2)),)
    assert _select(rows, splits, "Off").keep.all()


def test_exact_duplicates_are_no_near_duplicates() -> None:
    selection = _select([(LONG, "a"), (LONG, "a")], option="Remove")

    assert (selection.duplicates, selection.near_duplicates) == (1, 0)


def test_above_the_limit_nothing_is_near() -> None:
    index, near = RowIndex(), NearDuplicates(limit=1)
    for number in range(2):
        row = Row.pair(f"{LONG} {number}", "a")
        index.add(row, "train", 0, number + 1)
        near.add(row)

    selection = select(index, near, "Remove", [None])

    assert selection.keep.all()
    assert selection.near_duplicates is None


def test_no_rows_are_no_trouble() -> None:
    assert select(RowIndex(), NearDuplicates(10), "Remove", [None]).keep.tolist() == []


def test_what_the_model_sees_is_the_input_and_all_else_is_the_answer() -> None:
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
def test_what_is_kept_is_each_row_once_and_each_input_in_one_split_in_any_order(
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
    rows: list[Row], splits: list[SplitName] | None = None, option: Option = "Keep"
) -> Selection:
    index, near = RowIndex(), None if option == "Off" else NearDuplicates(limit=1000)
    for number, row in enumerate(rows):
        index.add(row, splits[number] if splits else "train", 0, number + 1)
        if near is not None:
            near.add(row)
    return select(index, near, option, [None])


def _place(record: int) -> Place:
    return Place(None, record)
