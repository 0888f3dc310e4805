# SPDX-License-Identifier: Apache-2.0
"""Near duplicates: nearly equal inputs with the same answer."""

import numpy as np

from finetune_trainer.data.duplicates import find_near
from finetune_trainer.data.row_index import RowIndex, groups
from finetune_trainer.rows import Message, Row
from tests.trainer.data.reading import reader

WORDS = [f"{first}{second}" for first in "bdfgklmnprst" for second in ("a", "el", "in", "or", "ush")]


def test_a_text_with_one_more_word_is_near_and_another_text_is_not() -> None:
    text = _text(1, 30)
    near = _near([(text, "a"), (f"{text} thanks", "a"), (_text(2, 30), "a")])

    assert near == [-1, 0, -1]


def test_capital_letters_and_marks_between_words_make_no_difference() -> None:
    text = _text(1, 12)

    assert _near([(text, "a"), (text.upper().replace(" ", ", ") + "!", "a")]) == [-1, 0]


def test_another_answer_is_never_near() -> None:
    text = _text(1, 30)

    assert _near([(text, "a"), (text, "b"), (f"{text} thanks", "b")]) == [-1, -1, 1]


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


def test_the_words_of_a_template_do_not_make_rows_near() -> None:
    template = _text(1, 200)
    rows = [(f"{template} {_text(number, 12)}", "yes") for number in range(2, 60)]
    rows.append((f"{rows[7][0]} please", "yes"))

    assert _near(rows) == [*[-1] * 58, 7]


def test_the_template_of_the_sample_applies_to_later_rows() -> None:
    template = _text(1, 200)
    rows = [(f"{template} {_text(number, 12)}", "yes") for number in range(2, 1100)]
    rows.append((f"{rows[1050][0]} please", "yes"))

    assert _near(rows) == [*[-1] * 1098, 1050]


def test_nearly_all_pairs_above_the_minimum_similarity_are_found_and_none_far_below() -> None:
    pairs = 200
    rows = []
    for number in range(pairs):
        words = _text(number, 60).split()
        rows += [(" ".join(words), "a"), (" ".join([*words[:-2], "x", "y"]), "a")]
        rows.append((" ".join([*words[:30], *_text(number + 10_000, 30).split()]), "a"))
    near = _near(rows)

    # A near pair shares 56 of 60 trigrams, a far pair 28 of 88.
    assert sum(each >= 0 for each in near[1::3]) > 0.97 * pairs
    assert all(each == 3 * number for number, each in enumerate(near[1::3]) if each >= 0)
    assert all(each == -1 for each in near[2::3])


def test_short_texts_are_near_if_all_words_are_equal() -> None:
    texts = ["Reset my password", "reset, my password!", "reset my passwort", "my password reset"]
    without_words = ["…", "!", "👍", "👍\ufe0f"]

    assert _near([(text, "a") for text in (*texts, *without_words)]) == [-1, 0, -1, -1, -1, -1, -1, 6]


def test_texts_with_few_words_besides_the_template_are_compared_as_a_whole() -> None:
    template = _text(1, 40)
    cities = ["Ulm", "Bonn", "Jena", "Kiel", "Trier", "Worms", "Hof", "Suhl", "Gera", "Fulda", "Marl", "Bern"]
    rows = [(f"{template} {city}", "yes") for city in cities]

    assert _near([*rows, (rows[3][0].upper(), "yes")]) == [*[-1] * 12, 3]


def _near(pairs: list[tuple[str, str]]) -> list[int]:
    return _near_rows([Row.pair(*pair) for pair in pairs])


def _near_rows(rows: list[Row]) -> list[int]:
    index = RowIndex()
    for number, row in enumerate(rows):
        index.add(row, "train", 0, number + 1)
    answers = groups(index.table["visible_answer"])
    found: list[int] = find_near(reader(rows), np.arange(len(rows)), answers).tolist()
    return found


def _text(seed: int, words: int) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, words))
