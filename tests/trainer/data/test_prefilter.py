# SPDX-License-Identifier: Apache-2.0
"""Prefilter of the detectors: the findings are the same with and without it."""

import random
import re
import string
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from finetune_trainer.contract.dataset import Checks
from finetune_trainer.data.checks import detector, secrets
from finetune_trainer.data.checks.detector import Prefilter, loosen
from finetune_trainer.data.checks.personal_data import (
    CARD,
    CARD_DIGITS,
    EMAIL_ADDRESS,
    IBAN_CHARACTERS_LIKE,
    IBAN_LIKE,
    SEVEN_DIGITS,
    SEVEN_DIGITS_LIKE,
)
from finetune_trainer.data.checks.scanner import EXPRESSIONS as SEQUENCE_EXPRESSIONS
from finetune_trainer.data.checks.scanner import SEQUENCES, Scanner
from finetune_trainer.data.checks.secrets import ALL_HINTS, Secrets
from finetune_trainer.rows import Message, Row

EVERYTHING = Checks(
    secrets="Warn", email_addresses="Warn", payment_cards="Warn", ibans="Warn", phone_numbers="Warn"
)
CHECKS = [
    Checks(),
    EVERYTHING,
    Checks(
        secrets="Redact",
        email_addresses="Redact",
        payment_cards="Fail",
        ibans="Redact",
        phone_numbers="Redact",
        phone_region="DE",
    ),
]

SHAPES = [
    *(hints.shape for hints in ALL_HINTS if hints.shape is not None),
    *(rule.pattern for rule in Secrets()._rules),
    *(EMAIL_ADDRESS, CARD, IBAN_LIKE, SEVEN_DIGITS, SEQUENCES),
]
WORDS = [word for hints in ALL_HINTS for word in hints.words]
ALPHABET = "aAkKsSzZ059 +-_/=.:@\n\t\"'`;>\u212a\u0130\u0131\u017fßé٣中\u00a0\u2003\u0085\x1f\x0b＋"
PIECES = st.one_of(
    *(st.from_regex(pattern) for pattern in dict.fromkeys(SHAPES)),
    st.sampled_from(WORDS).flatmap(lambda word: st.sampled_from([word, word.upper(), word.title()])),
    st.sampled_from(
        ["DE89 3704 0044 0532 0130 00", "4111 1111 1111 1111", "+49 30 901820", "+1 212 555 0123"]
    ),
    st.text(ALPHABET, max_size=8),
    st.text(st.characters(), max_size=8),
)
TEXTS = st.lists(PIECES, max_size=4).map("".join)


def by_every_detector(checks: Checks) -> Scanner:
    """Behave as if RE2 were not installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detector, "re2", None)
        return Scanner(checks)


SCANNERS = [(Scanner(checks), by_every_detector(checks)) for checks in CHECKS]


def check(row: Row) -> None:
    for scanner, every in SCANNERS:
        assert scanner.scan(row) == every.scan(row)


@settings(max_examples=60, deadline=None)
@given(prompt=TEXTS, completion=TEXTS)
@example(prompt='my password:\u00a0"Ab3kd93kdWq7"', completion="ok")
@example(prompt="aws \u212aey = '" + "a1B2" * 10 + "'", completion="a\u212aIA" + "A1" * 8)
def test_the_findings_are_those_of_the_detectors_alone(prompt: str, completion: str) -> None:
    check(Row.pair(prompt, completion))


@pytest.mark.parametrize("name", ["test_checks.py", "test_linear.py"])
def test_the_findings_in_texts_made_for_detectors_are_those_of_the_detectors_alone(name: str) -> None:
    """Every text of the detectors' tests, truncated at every position."""
    source = Path(__file__).with_name(name).read_text()
    for literal in re.findall(r'"((?:[^"\\\n]|\\.)+)"', source):
        for text in (literal, literal.upper(), literal * 3):
            check(Row.pair(text, text[1:]))


def test_the_findings_in_a_row_of_every_kind_of_text_are_those_of_the_detectors_alone() -> None:
    calls = '[{"function":{"arguments":"{\\"to\\":\\"jo@example.com\\"}","name":"mail"},"type":"function"}]'
    check(
        Row(
            (
                Message("user", "hi"),
                Message("assistant", "", tool_calls=calls),
                Message("tool", "AKIA" + "A1" * 8),
            ),
            rejected="<|im_end|>",
        )
    )
    check(Row.pair("half of a character \ud800 of jo@example.com", "ok"))


LOOSE = [
    *((hints.shape, loosen(hints.shape)) for hints in ALL_HINTS if hints.shape is not None),
    (CARD, CARD_DIGITS),
    (IBAN_LIKE, IBAN_CHARACTERS_LIKE),
    (SEVEN_DIGITS, SEVEN_DIGITS_LIKE),
]
LOOKED = Prefilter([((expression,),) for _, expression in LOOSE])


@settings(max_examples=300, deadline=None)
@given(data=st.data(), number=st.integers(0, len(LOOSE) - 1))
def test_an_expression_matches_wherever_its_pattern_does(data: st.DataObject, number: int) -> None:
    assert number in LOOKED.find(data.draw(st.from_regex(LOOSE[number][0])))


def test_texts_of_everyday_words_select_no_detector() -> None:
    texts = [
        "Please reset my password, the key is lost.",
        "ASAP: the secret of 3 tokens!",
        "Call 555 0123 at 9.",
    ]

    looked = Scanner(EVERYTHING)._prefilter

    found = [looked.find(text) for text in texts]

    assert found == [[], [], []]


def test_a_set_with_little_memory_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    detectors = [Secrets.expressions, (("@",),), SEQUENCE_EXPRESSIONS]
    monkeypatch.setattr(detector, "MAX_MEMORY_BYTES", 150_000)
    little = Prefilter(detectors)
    monkeypatch.undo()
    chance = random.Random(0)  # noqa: S311
    text = "".join(chance.choices(string.ascii_letters + string.digits + "-_ ", k=20_000))

    assert little.find(text + "@") == Prefilter(detectors).find(text + "@") == [0, 1]


def test_every_detector_runs_if_the_set_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failed:
        def Match(self, _text: bytes) -> None:  # noqa: N802
            """Respond like RE2 with too little memory."""

    monkeypatch.setattr(detector, "_set_of", lambda _: Failed())

    assert Prefilter([Secrets.expressions, (("@",),)]).find("a") == [0, 1]


def test_every_hint_has_expressions() -> None:
    assert all(hints.expressions for hints in secrets.ALL_HINTS)
