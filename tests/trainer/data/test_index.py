# SPDX-License-Identifier: Apache-2.0
"""Shortcuts that must equal the general computation: splits, files and digests depend on them."""

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer import canonical_json
from finetune_trainer.data.formats.base import RawRow
from finetune_trainer.data.row_index import NONE, PART, answer_digest, input_digest
from finetune_trainer.data.split_files import fraction_of
from finetune_trainer.rows import Message, Row

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(prompt=TEXTS, completion=TEXTS, seed=st.integers(0, 2**31 - 1))
def test_shortcuts_for_pairs_equal_the_general_computation(prompt: str, completion: str, seed: int) -> None:
    row = Row.pair(prompt, completion)

    assert row.to_line() == canonical_json.text(row.to_dict())
    subject = hashlib.sha256(canonical_json.encode(["v1", seed, "prompt", prompt])).digest()
    assert fraction_of(RawRow(row), seed) == int.from_bytes(subject[:8], "big") / 2**64
    parts = PART.join([completion, NONE, NONE, "None", "11"])
    assert answer_digest(row) == hashlib.sha256(parts.encode()).digest()[:8]


def test_rows_whose_tools_and_calls_differ_in_the_order_of_fields_are_the_same() -> None:
    def row(calls: str, tools: str) -> Row:
        earlier = (Message("assistant", "", tool_calls=calls), Message("tool", "here"))
        return Row((Message("user", "a"), *earlier, Message("assistant", "", tool_calls=calls)), tools=tools)

    one, other = row('[{"a":1,"b":2}]', '[{"c":3,"d":4}]'), row('[{"b":2,"a":1}]', '[{"d":4,"c":3}]')

    assert input_digest(one) == input_digest(other)
    assert answer_digest(one) == answer_digest(other)
    assert fraction_of(RawRow(one), 0) == fraction_of(RawRow(other), 0)
    assert input_digest(one) != input_digest(row('[{"a":1,"b":2}]', '[{"c":3,"d":5}]'))
    assert answer_digest(one) != answer_digest(row('[{"a":1,"b":3}]', '[{"c":3,"d":4}]'))
