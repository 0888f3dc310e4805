# SPDX-License-Identifier: Apache-2.0
"""Streamed text: whole characters, complete, and without a stop string."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from finetune_trainer.serve.detokenization import TextStream
from tools.models import tiny


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(tiny())
    return loaded


def stream(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], stop: tuple[str, ...] = ()
) -> tuple[list[str], bool]:
    text = TextStream(tokenizer, stop)
    pieces = []
    for token in ids:
        pieces.append(text.push(token))
        if text.stopped:
            return pieces, True
    return [*pieces, text.finish()], text.stopped


@settings(deadline=None)
@given(st.lists(st.integers(0, 511), max_size=40))
def test_the_pieces_of_any_tokens_make_what_decoding_them_at_once_makes(
    tokenizer: PreTrainedTokenizerBase, ids: list[int]
) -> None:
    pieces, _ = stream(tokenizer, ids)

    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)


@settings(deadline=None)
@given(st.text(max_size=20))
def test_no_piece_of_a_text_has_half_a_character(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    # Hypothesis also tries string constants of the code, such as the names of control tokens.
    assume(not tokenizer.added_tokens_decoder.keys() & set(ids))

    pieces, _ = stream(tokenizer, ids)

    assert "".join(pieces) == text


@settings(deadline=None)
@given(st.text("ab", max_size=20), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3))
def test_the_text_ends_before_the_stop_string_that_is_complete_first(
    tokenizer: PreTrainedTokenizerBase, text: str, stop: list[str]
) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces, stopped = stream(tokenizer, ids, tuple(stop))

    found = [text.index(word) for word in stop if word in text]
    assert stopped == bool(found)
    if not found:
        assert "".join(pieces) == text
    else:
        assert text.startswith("".join(pieces))
        assert not any(word in "".join(pieces) for word in stop)


@pytest.mark.parametrize("stop", ["END", "D"])
def test_text_that_may_begin_a_stop_string_is_held_back_and_released(
    tokenizer: PreTrainedTokenizerBase, stop: str
) -> None:
    ids = tokenizer("one EN two", add_special_tokens=False)["input_ids"]

    assert "".join(stream(tokenizer, ids, (stop,))[0]) == "one EN two"
