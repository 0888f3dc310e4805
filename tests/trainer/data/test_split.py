# SPDX-License-Identifier: Apache-2.0
"""The rule that splits rows; it can never change."""

import hashlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_trainer import canonical_json
from finetune_trainer.contract.dataset import Split
from finetune_trainer.data.formats.base import RawRow
from finetune_trainer.data.split_files import fraction_of, split_of
from finetune_trainer.rows import Message, Row

TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1).filter(lambda text: text.strip())
PROMPTS = st.lists(TEXT, min_size=1, max_size=30)
EVEN = Split(validation=0.3, test=0.3)
CALL = '[{"function":{"arguments":"{}","name":"orders"},"id":"1","type":"function"}]'


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
def test_known_rows_keep_their_fraction(
    row: Row, group: str | int | None, seed: int, fraction: float
) -> None:
    assert fraction_of(RawRow(row, group), seed) == fraction


def test_the_prompt_of_a_preference_or_kto_row_has_the_fraction_of_the_same_prompt_in_a_pair() -> None:
    pair = Row.pair("Where is my order?", "dispatch")
    preference = Row(pair.messages, "Preference", rejected="refund")
    kto = Row(pair.messages, "KTO", label=True)

    assert {_fraction(row) for row in (pair, preference, kto)} == {0.9548119571250019}


def test_a_preference_about_a_conversation_has_the_fraction_of_that_conversation() -> None:
    turns = (Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Hello"))

    assert _fraction(Row(turns, "Preference", rejected="Go away")) == 0.35823155356333475


def test_weights_names_and_tools_do_not_change_the_split_of_a_chat() -> None:
    turns = (
        Message("user", "Hi"),
        Message("assistant", "Hello"),
        Message("user", "Bye"),
        Message("assistant", "x"),
    )
    context = (turns[0], Message("assistant", "Hello", learned=False), *turns[2:])

    assert _fraction(Row(turns)) == _fraction(Row(context)) == _fraction(Row(turns, tools="[]"))


def test_tool_calls_are_part_of_the_input() -> None:
    def chat(calls: str | None, answers: str | None) -> float:
        return _fraction(
            Row(
                (
                    Message("user", "Where is it?"),
                    Message("assistant", "", tool_calls=calls),
                    Message("tool", "Berlin", tool_call_id=answers),
                    Message("assistant", "In Berlin."),
                )
            )
        )

    assert len({chat(None, None), chat(CALL, None), chat(CALL, "1"), chat(CALL, "2")}) == 4


def test_rows_with_a_split_of_the_teams_own_keep_it() -> None:
    row = Row.pair("Where is my order?", "dispatch")

    assert split_of(RawRow(row, split="test"), Split(column="part")) == "test"
    assert split_of(RawRow(row), Split()) == "train"


@given(prompt=TEXT, completions=st.tuples(TEXT, TEXT), seed=st.integers(0, 2**31 - 1))
def test_a_prompt_is_in_one_split_whatever_its_completion(
    prompt: str, completions: tuple[str, str], seed: int
) -> None:
    division = Split(validation=0.3, test=0.3, seed=seed)
    first, second = (split_of(RawRow(Row.pair(prompt, each)), division) for each in completions)

    assert first == second


@given(prompts=st.tuples(TEXT, TEXT), group=TEXT)
def test_rows_of_a_group_are_in_one_split(prompts: tuple[str, str], group: str) -> None:
    first, second = (split_of(RawRow(Row.pair(prompt, "x"), group), EVEN) for prompt in prompts)

    assert first == second


@given(prompt=TEXT, test=st.floats(0, 0.5), more=st.floats(0, 0.4))
def test_a_larger_test_split_keeps_every_test_row(prompt: str, test: float, more: float) -> None:
    raw = RawRow(Row.pair(prompt, "x"))

    if split_of(raw, Split(test=test)) == "test":
        assert split_of(raw, Split(test=test + more)) == "test"


@settings(max_examples=50)
@given(prompts=PROMPTS, more=PROMPTS, shuffle=st.randoms(use_true_random=False))
def test_new_rows_and_another_order_move_no_row_and_no_prompt_is_in_two_splits(
    prompts: list[str], more: list[str], shuffle: random.Random
) -> None:
    before = _splits_of(prompts)
    everything = [*prompts, *more]
    shuffle.shuffle(everything)
    after = _splits_of(everything)

    assert before.items() <= after.items()
    assert all(len(splits) == 1 for splits in after.values())


def test_many_rows_meet_the_fractions() -> None:
    division = Split(validation=0.1, test=0.2)
    names = [split_of(RawRow(Row.pair(f"question {number}", "x")), division) for number in range(20_000)]

    # Four standard deviations of a fair split.
    assert abs(names.count("test") / 20_000 - 0.2) < 0.0113
    assert abs(names.count("validation") / 20_000 - 0.1) < 0.0085


def _fraction(row: Row) -> float:
    return fraction_of(RawRow(row), seed=0)


def _splits_of(prompts: list[str]) -> dict[str, frozenset[str]]:
    splits: dict[str, set[str]] = {}
    for number, prompt in enumerate(prompts):
        splits.setdefault(prompt, set()).add(split_of(RawRow(Row.pair(prompt, str(number))), EVEN))
    return {prompt: frozenset(names) for prompt, names in splits.items()}


@given(prompt=st.text(st.characters(exclude_categories=["Cs"])), seed=st.integers(0, 2**31 - 1))
def test_the_fraction_of_a_prompt_depends_on_its_canonical_json(prompt: str, seed: int) -> None:
    text = canonical_json.text(["v1", seed, "prompt", prompt])

    place = fraction_of(RawRow(Row.pair(prompt, "a")), seed)

    assert place == int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
