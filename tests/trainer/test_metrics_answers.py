# SPDX-License-Identifier: Apache-2.0
"""Metrics of answers: each equals the library that computes it, to the last digit."""

import math
import tomllib
import tracemalloc
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.metrics.chrf import CHRF
from torchmetrics.functional.text import rouge_score

from finetune_trainer.contract.metrics import METRICS
from finetune_trainer.evaluate.examples import Example
from finetune_trainer.evaluate.measure import Measure, MeasuredRow
from finetune_trainer.evaluate.measured_model import GeneratedAnswer
from finetune_trainer.evaluate.measurement_log import RowPrediction
from finetune_trainer.evaluate.metrics import (
    answer_tokens,
    chrf,
    perplexity,
    truncated,
)
from finetune_trainer.evaluate.metrics.registry import measures_of
from finetune_trainer.scoring.answer_formats import AnswerPattern
from finetune_trainer.scoring.metric_scope import MetricScope
from finetune_trainer.scoring.text_comparison import LabelSet
from finetune_trainer.scoring.textmetrics import exact_match, normalized_match, rouge_l
from finetune_trainer.tokens.encoding import IGNORE_INDEX, EncodedRow

ENGLISH: Final = (
    ("The parcel is late because of snow.", ("The parcel was late, because of the snow.",)),
    ("Please restart the router.", ("Restart your router, please!", "Please restart the router.")),
    ("order-66 was paid on 2026-11-27", ("Order 66 was paid on 27 November 2026",)),
    ("", ("an answer",)),
    ("no accepted text", ()),
    ("...", ("!!!",)),
)
OTHERS: Final = (
    ("注文は明日届きます。", ("ご注文は明日届く予定です。",)),
    ("发票已经寄出", ("发票已经寄出。", "已寄发票")),
    ("Die Straße ist gesperrt – naïve Lösung", ("Die Strasse ist gesperrt",)),
    ("Доставка завтра", ("Доставка будет завтра",)),
    ("🙂 emoji only 🙂", ("🙂",)),
)
CASES: Final = ENGLISH + OTHERS
SCOPE: Final = MetricScope(labels=LabelSet(("a", "b")), pattern=AnswerPattern("a"))
MEASURES_OF_ALL: Final = measures_of(METRICS, SCOPE)


def row(
    text: str, accepted: Sequence[str], value: float = 0, weight: int = 1, number: int = 1
) -> MeasuredRow:
    labels = [IGNORE_INDEX, *[1] * weight]
    example = Example(number, EncodedRow([1] * len(labels), labels), [1], 1, frozenset(accepted))
    prediction = RowPrediction(subject="Tuned", row=number, text=text, metrics={"m": value})
    return MeasuredRow(example, prediction, value, weight)


def score(metric: str, rows: Sequence[MeasuredRow]) -> float:
    measure = MEASURES_OF_ALL[metric]
    return measure.score_of(measure.table(rows))


@pytest.mark.parametrize(
    ("answer", "accepted", "same"),
    [
        ("billing", {"billing"}, True),
        ("Billing", {"billing"}, False),
        ("billing.", {"billing"}, False),
        ("", frozenset(), False),
        ("b", {"a", "b"}, True),
    ],
)
def test_an_exact_match_allows_no_difference(answer: str, accepted: frozenset[str], same: bool) -> None:
    assert exact_match.value(answer, accepted) == same


@pytest.mark.parametrize(
    ("answer", "accepted", "same"),
    [
        ("Billing.", {"billing"}, True),
        ("  billing \n team ", {"billing team"}, True),
        ("STRASSE", {"Straße"}, True),
        ("ﬁnance", {"finance"}, True),
        ("１２３円です。", {"123円です"}, True),
        ("发票！", {"发票"}, True),
        ("5 ㎑", {"5 khz"}, True),
        ("e\u0301te\u0301", {"été"}, True),
        ("yes!?  .", {"Yes"}, True),
        ("(yes)", {"yes"}, False),
        ("(yes)", {"(yes"}, False),
        ("f(x)", {"f(x"}, False),
        ("[f(x)].", {"[f(x)]"}, True),
        ("f(x", {"f(x)"}, False),
        ("a list[int])", {"a list[int]"}, True),
        ("yes)", {"yes"}, True),
        ("東京（とうきょう）。", {"東京(とうきょう)"}, True),
        ("3.5", {"35"}, False),
        ("3.5.", {"3.5"}, True),
        ("50 %", {"50"}, True),
        ("!", {"?"}, False),
        ("?", {"?"}, True),
        ("", {"?"}, False),
        ("", frozenset(), False),
        ("b.", {"A", "B"}, True),
    ],
)
def test_a_normalized_match_ignores_case_spaces_and_punctuation_at_the_end(
    answer: str, accepted: frozenset[str], same: bool
) -> None:
    assert normalized_match.value(answer, accepted) == same


def library_rouge_l(answer: str, accepted: Sequence[str], **words: Any) -> float:
    scores = (rouge_score(answer, text, rouge_keys="rougeL", **words) for text in accepted)
    return max((round(float(score["rougeL_fmeasure"]), 6) for score in scores), default=0)


@pytest.mark.parametrize(("answer", "accepted"), ENGLISH)
def test_rouge_l_is_that_of_torchmetrics_for_english(answer: str, accepted: tuple[str, ...]) -> None:
    assert rouge_l.value(answer, accepted) == library_rouge_l(answer, accepted)


@given(st.lists(st.sampled_from("abcd")), st.lists(st.sampled_from("abcd")))
def test_rouge_l_is_that_of_torchmetrics_for_any_words(answer: list[str], correct: list[str]) -> None:
    texts = " ".join(answer), " ".join(correct)

    assert rouge_l.value(texts[0], {texts[1]}) == pytest.approx(
        library_rouge_l(texts[0], texts[1:]), abs=1e-6
    )


def test_rouge_l_of_long_texts_needs_little_memory() -> None:
    """The table of the usual algorithm has 400 million cells."""
    words = [f"w{number % 97}" for number in range(20_000)]
    tracemalloc.start()
    try:
        assert rouge_l.value(" ".join(words), {" ".join(words[1:])}) == pytest.approx(1, abs=1e-4)
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("answer", "accepted"), OTHERS)
def test_rouge_l_has_words_of_any_script(answer: str, accepted: tuple[str, ...]) -> None:
    spaced = [" ".join(rouge_l.WORD.findall(text.lower())) for text in (answer, *accepted)]

    assert rouge_l.value(answer, accepted) == library_rouge_l(spaced[0], spaced[1:], normalizer=str)


@pytest.mark.parametrize(
    ("answer", "accepted", "value"),
    [
        ("注文は明日届きます", ["注文は明日来ます"], round(2 * 7 / (9 + 8), 6)),
        ("the cat sat on the mat", ["the mat sat on the cat"], round(4 / 6, 6)),
        ("发票已经寄出", ["发票已经寄出。", "没有"], 1),
        ("🙂", ["🙂"], 0),
    ],
)
def test_rouge_l_counts_the_longest_common_subsequence(
    answer: str, accepted: list[str], value: float
) -> None:
    assert rouge_l.value(answer, accepted) == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Order-66, paid", ["Order", "66", "paid"]),
        ("naïve Größe", ["naïve", "Größe"]),
        ("注文は3件", ["注", "文", "は", "3", "件"]),
        ("snake_case", ["snake", "case"]),
        ("", []),
    ],
)
def test_words_are_runs_of_letters_and_single_ideographs(text: str, words: list[str]) -> None:
    assert rouge_l.WORD.findall(text) == words


@pytest.mark.parametrize(("answer", "accepted"), CASES)
def test_the_chrf_of_a_row_is_that_of_a_sentence(answer: str, accepted: tuple[str, ...]) -> None:
    assert chrf.value(answer, accepted) == CHRF().sentence_score(answer, accepted or [""]).score / 100


@pytest.mark.parametrize("cases", [ENGLISH, OTHERS, CASES, CASES[:1]])
def test_the_chrf_of_all_rows_is_that_of_the_corpus(
    cases: tuple[tuple[str, tuple[str, ...]], ...],
) -> None:
    most = max(len(accepted) for _, accepted in cases)
    references = [
        [sorted(accepted or ("",))[min(n, max(len(accepted) - 1, 0))] for _, accepted in cases]
        for n in range(most)
    ]
    expected = CHRF().corpus_score([answer for answer, _ in cases], references).score / 100

    assert score("chrf", [row(*case) for case in cases]) == expected


def test_the_chrf_of_a_corpus_is_not_the_mean_of_its_sentences() -> None:
    rows = [row(*case) for case in CASES]
    mean = sum(chrf.value(*case) for case in CASES) / len(CASES)

    assert score("chrf", rows) != pytest.approx(mean, rel=0.01)


def test_lengths_and_ends_are_those_of_the_answer() -> None:
    example = row("", ()).example
    answers = [GeneratedAnswer("", 0, "stop"), GeneratedAnswer("a b", 2, "length")]

    assert [answer_tokens.value(answer, example) for answer in answers] == [0, 2]
    assert [truncated.value(answer, example) for answer in answers] == [0, 1]


def test_the_perplexity_of_all_rows_is_exp_of_their_loss_per_token() -> None:
    losses, tokens = (0.5, 2.25, 0.0), (3, 7, 2)
    rows = [row("", (), math.exp(nats), n) for nats, n in zip(losses, tokens, strict=True)]
    expected = math.exp(sum(nats * n for nats, n in zip(losses, tokens, strict=True)) / sum(tokens))

    assert score("perplexity", rows) == pytest.approx(expected, rel=1e-14)


def test_a_perplexity_without_a_number_is_infinite() -> None:
    assert perplexity.score(MEASURES_OF_ALL["loss"].table([row("", (), 1000)])[0]) == math.inf


def test_a_mean_counts_rows_by_their_weight() -> None:
    assert score("loss", [row("", (), 1, 1), row("", (), 4, 2)]) == 3
    assert score("f1_token", [row("", (), 0.25), row("", (), 0.5)]) == 0.375


def test_the_score_of_a_sum_does_not_depend_on_the_order_of_the_rows() -> None:
    rows = [row("", (), value) for value in (0.1, 1e16, 0.3, -1e16, 0.7)]

    assert score("loss", rows) == score("loss", rows[::-1]) == math.fsum((0.1, 0.3, 0.7)) / 5


def test_only_rows_with_a_weight_are_rows_of_a_measure() -> None:
    counted, without = row("", (), 2, 3, number=1), row("", (), 0, 0, number=2)
    predictions = {each.example.row: each.prediction for each in (counted, without)}

    assert MEASURES_OF_ALL["loss"].rows("m", [counted.example, without.example], predictions) == [counted]


def test_what_is_no_mean_is_called_an_aggregate() -> None:
    aggregates = {name for name, info in METRICS.items() if info.kind == "Aggregate"}

    mean = Measure(lambda _: []).score
    assert aggregates == {name for name, each in MEASURES_OF_ALL.items() if each.score is not mean}


def test_a_library_of_which_private_functions_are_used_is_limited_to_known_versions() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]

    assert "sacrebleu>=2.6,<2.7" in project["optional-dependencies"]["trainer"]
    assert version("sacrebleu").startswith("2.6.")
