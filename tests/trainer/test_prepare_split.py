"""The rule that divides rows; it can never change."""

import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_trainer.contract import Split
from finetune_trainer.prepare.split import fraction_of, split_of
from finetune_trainer.rows import Message, Row
from tests.trainer.preparing import Preparation, json_lines

TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1).filter(lambda text: text.strip())
PROMPTS = st.lists(TEXT, min_size=1, max_size=30)


@pytest.mark.parametrize(
    ("row", "group", "seed", "fraction"),
    [
        (Row.pair("Where is my order?", "dispatch"), None, 0, 0.9548119571250019),
        (Row.pair("Where is my order?", "dispatch"), None, 1, 0.671395279519548),
        (Row.pair("Größe ✓", "x"), None, 0, 0.37813931927121647),
        (
            Row((Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Hello"))),
            None,
            0,
            0.35823155356333475,
        ),
        (Row.pair("a", "b"), "customer 7", 0, 0.3247974181701917),
        (Row.pair("a", "b"), 7, 0, 0.46902887949590377),
    ],
)
def test_known_rows_have_their_known_place_for_ever(
    row: Row, group: str | int | None, seed: int, fraction: float
) -> None:
    assert fraction_of(row, group, seed) == fraction


@given(prompt=TEXT, completions=st.tuples(TEXT, TEXT), seed=st.integers(0, 2**31 - 1))
def test_a_prompt_is_in_one_split_whatever_its_completion(
    prompt: str, completions: tuple[str, str], seed: int
) -> None:
    split = Split(validation=0.3, test=0.3, seed=seed)
    first, second = (split_of(Row.pair(prompt, completion), None, split) for completion in completions)

    assert first == second


@given(prompts=st.tuples(TEXT, TEXT), group=TEXT)
def test_rows_of_a_group_are_in_one_split(prompts: tuple[str, str], group: str) -> None:
    split = Split(validation=0.3, test=0.3, group_by="customer")
    first, second = (split_of(Row.pair(prompt, "x"), group, split) for prompt in prompts)

    assert first == second


@given(row=TEXT, test=st.floats(0, 0.5), more=st.floats(0, 0.4))
def test_a_larger_test_split_keeps_every_test_row(row: str, test: float, more: float) -> None:
    pair = Row.pair(row, "x")

    if split_of(pair, None, Split(test=test)) == "test":
        assert split_of(pair, None, Split(test=test + more)) == "test"


@settings(max_examples=25, deadline=None)
@given(prompts=PROMPTS, more=PROMPTS, shuffle=st.randoms(use_true_random=False))
def test_more_rows_and_another_order_move_no_row(
    prompts: list[str], more: list[str], shuffle: random.Random
) -> None:
    before = _splits_of(prompts)
    everything = [*prompts, *more]
    shuffle.shuffle(everything)
    after = _splits_of(everything)

    assert before.items() <= after.items()


@settings(max_examples=25, deadline=None)
@given(prompts=PROMPTS)
def test_line_ends_inside_texts_move_no_row(prompts: list[str]) -> None:
    unix = _splits_of([f"{prompt}\nPlease help." for prompt in prompts])

    assert _splits_of([f"{prompt}\r\nPlease help." for prompt in prompts]) == unix


def test_the_fractions_are_met_by_many_rows() -> None:
    split = Split(validation=0.1, test=0.2)
    names = [split_of(Row.pair(f"question {number}", "x"), None, split) for number in range(20_000)]

    # Four standard deviations of a fair division.
    assert abs(names.count("test") / 20_000 - 0.2) < 0.0113
    assert abs(names.count("validation") / 20_000 - 0.1) < 0.0085


def _splits_of(prompts: list[str]) -> dict[str, str]:
    """The split of each prompt after a whole preparation."""
    # One row that always trains, so that few rows make a dataset too.
    rows = [{"prompt": prompt, "completion": "x"} for prompt in [*prompts, "Where is my order?"]]
    with tempfile.TemporaryDirectory() as folder:
        preparation = Preparation(Path(folder))
        source = preparation.write("rows.jsonl", json_lines(rows))
        result = preparation.run(source, split=Split(validation=0.3, test=0.3))
        return {
            row["prompt"]: split
            for split in ("train", "validation", "test")
            for row in preparation.rows(result, split)
        }
