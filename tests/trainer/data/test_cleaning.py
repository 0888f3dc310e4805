# SPDX-License-Identifier: Apache-2.0
"""Normalization of white space and Unicode, if it is on."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.contract.dataset import Cleaning
from finetune_trainer.data.batches import clean
from finetune_trainer.rows import Message, Row

SPACE = Cleaning(normalize_whitespace=True)
UNICODE = Cleaning(normalize_unicode=True)


def test_nothing_changes_by_default() -> None:
    row = Row.pair("  e\u0301  ", "b")

    assert clean(row, Cleaning()) is row


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("a  b", "a b"),
        ("a\t\u00a0\u202f b", "a b"),
        ("a \nb", "a\nb"),
        ("a\u2003\nb", "a\nb"),
        ("a\n\nb", "a\n\nb"),
        ("a\n \n\t\n\nb", "a\n\nb"),
        ("\n a\n", "a"),
        ("a\n    b", "a\n b"),
    ],
)
def test_white_space_is_normalized(text: str, cleaned: str) -> None:
    assert clean(Row.pair(text, "b"), SPACE).messages[0].content == cleaned


def test_unicode_is_composed() -> None:
    assert clean(Row.pair("Cafe\u0301", "b"), UNICODE) == Row.pair("Caf\u00e9", "b")
    # Compatibility characters have a different meaning, so they stay.
    assert clean(Row.pair("x\u00b2", "b"), UNICODE) == Row.pair("x\u00b2", "b")


def test_a_row_without_a_change_is_the_same_object() -> None:
    row = Row.pair("a b", "c")

    assert clean(row, Cleaning(normalize_whitespace=True, normalize_unicode=True)) is row


def test_every_turn_and_the_rejected_answer_are_cleaned_but_not_tool_calls() -> None:
    call = '[{"function":{"arguments":"{\\"text\\":\\"a  b\\"}"}}]'
    row = Row(
        (
            Message("user", "a  b"),
            Message("assistant", "c  d", learned=False, tool_calls=call),
            Message("tool", "e  f", tool_call_id="1"),
            Message("assistant", "g  h"),
        ),
        "Preference",
        rejected="i  j",
    )

    cleaned = clean(row, SPACE)

    assert [message.content for message in cleaned.messages] == ["a b", "c d", "e f", "g h"]
    assert cleaned.messages[1].tool_calls == call
    assert cleaned.messages[1].learned is False
    assert cleaned.rejected == "i j"


@given(
    st.text(st.characters(exclude_categories=("Cs", "Cc"))).filter(str.strip) | st.from_regex(r"[ \n\ta]+a")
)
def test_cleaning_is_idempotent_and_leaves_no_text_empty(text: str) -> None:
    both = Cleaning(normalize_whitespace=True, normalize_unicode=True)
    once = clean(Row.pair(text, "b"), both)

    assert clean(once, both) is once
    assert once.messages[0].content.strip()
    assert unicodedata.is_normalized("NFC", once.messages[0].content)
