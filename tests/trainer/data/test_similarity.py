"""Inputs that say nearly the same, with the same answer."""

import numpy as np

from finetune_trainer.data.index import RowIndex, groups
from finetune_trainer.data.similarity import NearDuplicates
from finetune_trainer.rows import Message, Row

WORDS = [f"{first}{second}" for first in "bdfgklmnprst" for second in ("a", "el", "in", "or", "ush")]


def test_one_word_more_is_near_and_another_text_is_not() -> None:
    text = _text(1, 30)
    near = _near([(text, "a"), (f"{text} thanks", "a"), (_text(2, 30), "a")])

    assert near == [-1, 0, -1]


def test_capital_letters_and_marks_between_words_make_no_difference() -> None:
    text = _text(1, 12)

    assert _near([(text, "a"), (text.upper().replace(" ", ", ") + "!", "a")]) == [-1, 0]


def test_another_answer_is_never_near() -> None:
    text = _text(1, 30)

    assert _near([(text, "a"), (text, "b"), (f"{text} thanks", "b")]) == [-1, -1, 1]


def test_few_words_are_near_where_they_are_the_same() -> None:
    assert _near(
        [("hello there", "a"), ("There, hello!", "a"), ("hello you", "a"), ("…", "a"), ("!", "a")]
    ) == [
        -1,
        0,
        -1,
        -1,
        3,
    ]


def test_a_conversation_is_near_by_all_its_turns() -> None:
    first, last = _text(1, 20), _text(2, 20)

    def chat(end: str) -> Row:
        return Row(
            (
                Message("user", first),
                Message("assistant", "Go on."),
                Message("user", last + end),
                Message("assistant", "a"),
            )
        )

    assert _near_rows([chat(""), chat(" please"), Row.pair(last, "a")]) == [-1, 0, -1]


def test_the_words_of_a_template_make_no_rows_near() -> None:
    template = _text(1, 200)
    rows = [(f"{template} {_text(number, 12)}", "yes") for number in range(2, 60)]
    rows.append((f"{rows[7][0]} please", "yes"))

    assert _near(rows) == [*[-1] * 58, 7]


def test_rows_after_the_sample_know_its_template() -> None:
    template = _text(1, 200)
    rows = [(f"{template} {_text(number, 12)}", "yes") for number in range(2, 1100)]
    rows.append((f"{rows[1050][0]} please", "yes"))

    assert _near(rows) == [*[-1] * 1098, 1050]


def test_nearly_all_pairs_above_the_threshold_are_found_and_none_far_below() -> None:
    pairs = 200
    rows = []
    for number in range(pairs):
        words = _text(number, 60).split()
        rows += [(" ".join(words), "a"), (" ".join([*words[:-2], "x", "y"]), "a")]
        rows.append((" ".join([*words[:30], *_text(number + 10_000, 30).split()]), "a"))
    near = _near(rows)

    # 56 of 60 triples are in both of a near pair, 28 of 88 in both of a far one.
    assert sum(each >= 0 for each in near[1::3]) > 0.97 * pairs
    assert all(each == 3 * number for number, each in enumerate(near[1::3]) if each >= 0)
    assert all(each == -1 for each in near[2::3])


def test_beyond_the_limit_it_gives_up_and_frees_its_memory() -> None:
    near = NearDuplicates(limit=3)
    gave_up = []
    for number in range(5):
        near.add(Row.pair(_text(number, 5), "a"))
        gave_up.append(near.gave_up)

    assert gave_up == [False, False, False, True, True]
    assert not near._signatures
    assert not near._sample


def _near(pairs: list[tuple[str, str]]) -> list[int]:
    return _near_rows([Row.pair(*pair) for pair in pairs])


def _near_rows(rows: list[Row]) -> list[int]:
    index, near = RowIndex(), NearDuplicates(limit=10_000)
    for number, row in enumerate(rows):
        index.add(row, "train", 0, number + 1)
        near.add(row)
    found: list[int] = near.find(np.arange(len(rows)), groups(index.table["answer"])).tolist()
    return found


def _text(seed: int, words: int) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, words))
