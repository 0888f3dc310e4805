# SPDX-License-Identifier: Apache-2.0
"""The evaluation report: which rows are shown first, what is stated, and that nothing in it can run."""

import hashlib
import json
import re
from base64 import b64encode
from dataclasses import replace
from typing import Any

import pytest

from finetune_trainer.report.document import Document, encode
from finetune_trainer.report.evaluation.content import (
    MAX_LISTED_ROWS,
    MAX_SHOWN_LABELS,
    MAX_SLICES,
    MAX_TEXT_CHARACTERS,
    GateLine,
    confusion,
    evaluation_report,
    evaluation_verdict,
    figure,
    gate_lines,
    gate_note,
)
from finetune_trainer.report.evaluation.facts import (
    VERDICTS,
    AnsweredRow,
    EvaluationFacts,
    JudgedRow,
    MetricProperties,
    ScoreSlice,
    ShownFinding,
    ShownGain,
    ShownGate,
    ShownJudge,
    ShownPrompt,
    ShownScore,
    SubjectAnswer,
)
from finetune_trainer.report.html_page import OPEN_ROWS, evaluation_page
from tests.trainer.test_report import DOCS, Outline

RIGHT = MetricProperties(name="right", description="share of right answers", is_zero_or_one=True)
WORDS = MetricProperties(name="words", description="mean share of right words")
NATS = MetricProperties(
    name="nats", description="mean loss in nats per token", lower_is_better=True, is_fraction=False
)
HOSTILE = "</p><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"


def answered(
    row: int, metric: MetricProperties = RIGHT, /, text: str = "billing", **values: float
) -> AnsweredRow:
    """A row with the value of each subject."""
    return AnsweredRow(
        row=row,
        turns=[("user", f"question {row}")],
        accepted=["billing"],
        answers={
            subject: SubjectAnswer(text=text, tokens=2, finish_reason="stop", metrics={metric.name: value})
            for subject, value in values.items()
        },
    )


def facts_of(
    *rows: AnsweredRow, metrics: tuple[MetricProperties, ...] = (RIGHT,), **given: Any
) -> EvaluationFacts:
    """Facts whose scores are the means of the rows, without intervals."""
    subjects = list(dict.fromkeys(subject for row in rows for subject in row.answers))
    values: dict[tuple[str, str], float] = {}
    for metric in metrics:
        for subject in subjects:
            of_rows = [value for row in rows if (value := row.value(metric.name, subject)) is not None]
            if of_rows:
                values[metric.name, subject] = sum(of_rows) / len(of_rows)
    properties = {metric.name: metric for metric in metrics}
    facts = EvaluationFacts(
        run="1f1f",
        checkpoint="sha256:" + "6a" * 32,
        base_model="sha256:" + "1c" * 32,
        dataset="sha256:" + "5e" * 32,
        split="test",
        subjects=subjects,
        metrics=metrics,
        scores=[
            ShownScore(metric=metric, subject=subject, value=value, rows=len(rows))
            for (metric, subject), value in values.items()
        ],
        gains=[
            ShownGain(
                metric=metric,
                over=subject,
                gain=properties[metric].gain(values.get((metric, "Tuned"), 0), value),
            )
            for (metric, subject), value in values.items()
            if subject != "Tuned"
        ],
        rows=rows,
        predictions_uri="pvc://artifacts/runs/1f1f/predictions.jsonl",
    )
    return replace(facts, **given)


def order(*rows: AnsweredRow, metrics: tuple[MetricProperties, ...] = (RIGHT,)) -> list[int]:
    return [row["row"] for row in evaluation_report(facts_of(*rows, metrics=metrics))["answers"]]


def with_interval(facts: EvaluationFacts, low: float, high: float) -> EvaluationFacts:
    return replace(facts, gains=[replace(gain, low=low, high=high) for gain in facts.gains])


def test_rows_that_only_another_model_answers_right_come_first_then_other_wrong_rows() -> None:
    assert order(
        answered(1, Tuned=1, Base=0),
        answered(2, Tuned=0, Base=0),
        answered(3, Tuned=1, Base=1),
        answered(4, Tuned=0, Base=1),
        answered(5, Tuned=0, Base=1),
    ) == [4, 5, 2, 3, 1]


def test_a_row_that_any_of_the_others_answers_right_is_lost() -> None:
    assert order(answered(1, Tuned=0, Base=0, Prompted=0), answered(2, Tuned=0, Base=0, Prompted=1)) == [2, 1]


def test_without_right_and_wrong_the_largest_loss_comes_first() -> None:
    rows = (
        answered(1, WORDS, Tuned=0.9, Base=1),
        answered(2, WORDS, Tuned=0.2, Base=0.9),
        answered(3, WORDS, Tuned=0.5, Base=0.1),
        answered(4, WORDS, Tuned=0.1, Base=0.1),
        answered(5, WORDS, Tuned=0.4, Base=0.4),
    )

    assert order(*rows, metrics=(WORDS,)) == [2, 1, 4, 5, 3]


def test_a_lower_value_is_a_gain_where_lower_is_better() -> None:
    rows = (answered(1, NATS, Tuned=1, Base=3), answered(2, NATS, Tuned=3, Base=1))
    report = evaluation_report(facts_of(*rows, metrics=(NATS,)))

    assert [(row["row"], row["outcomes"]) for row in report["answers"]] == [(2, ["worse"]), (1, ["better"])]
    assert report["wrongBy"] is None


def test_outcomes_are_counted_over_all_rows() -> None:
    rows = [answered(number, Tuned=number % 2, Base=0) for number in range(1, MAX_LISTED_ROWS + 101)]
    report = evaluation_report(facts_of(*rows))

    assert report["outcomes"] == {"worse": 0, "better": 300, "same": 300, "wrong": 300, "truncated": 0}
    assert (len(report["answers"]), report["answersOmitted"]) == (MAX_LISTED_ROWS, 100)


def test_a_truncated_answer_is_an_outcome() -> None:
    row = answered(1, Tuned=0, Base=0)
    cut = replace(
        row, answers={**row.answers, "Tuned": replace(row.answers["Tuned"], finish_reason="length")}
    )

    assert evaluation_report(facts_of(cut))["answers"][0]["outcomes"] == ["same", "wrong", "truncated"]


def test_a_gated_metric_decides_and_the_best_of_the_others_is_compared_with() -> None:
    row = answered(1, Tuned=1, Base=0, Prompted=1)
    answers = {
        subject: replace(answer, metrics={**answer.metrics, "words": value})
        for (subject, answer), value in zip(row.answers.items(), (0.5, 0.4, 0.3), strict=True)
    }
    facts = facts_of(replace(row, answers=answers), metrics=(RIGHT, WORDS))

    assert evaluation_report(facts)["decidedBy"] == "right"
    assert evaluation_report(facts)["comparedWith"] == "Prompted"
    gated = evaluation_report(replace(facts, gates=[ShownGate(metric="words", min=0.5)]))
    assert (gated["decidedBy"], gated["comparedWith"], gated["wrongBy"]) == ("words", "Base", "right")


ROWS = (answered(1, Tuned=1, Base=0), answered(2, Tuned=1, Base=1))


@pytest.mark.parametrize(
    ("facts", "level", "title"),
    [
        (with_interval(facts_of(*ROWS), 0.1, 0.9), "good", "Better than Base"),
        (with_interval(facts_of(*ROWS), -0.1, 0.9), "warning", "Not shown to be better than Base"),
        (with_interval(facts_of(*ROWS), -0.9, -0.1), "error", "Worse than Base"),
        (facts_of(*ROWS), "warning", "Ahead of Base on these rows"),
        (facts_of(answered(1, Tuned=0, Base=1)), "warning", "Behind Base on these rows"),
        (facts_of(answered(1, Base=1, Prompted=0), gains=[]), "warning", "The model Tuned was not measured"),
        (facts_of(answered(1, Tuned=1)), "warning", "right 1.000, compared with no other model"),
    ],
)
def test_only_an_interval_above_0_is_called_better(facts: EvaluationFacts, level: str, title: str) -> None:
    report = evaluation_report(facts)

    verdict = evaluation_verdict(report)

    assert (verdict.level, verdict.title) == (level, title)
    assert f"<h1>{title}</h1>" in evaluation_page(report)


def test_the_headline_names_values_gain_and_interval() -> None:
    verdict = evaluation_verdict(evaluation_report(with_interval(facts_of(*ROWS), 0.1, 0.9)))

    assert verdict.detail == (
        "right 1.000, Base 0.500, on 2 rows. The gain is +0.500; with 95 % confidence it is between +0.100"
        " and +0.900."
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.0, "0.000"), (0.85649, "0.856"), (0.00012, "0.00012"), (12.5, "12.500")],
)
def test_figures_have_three_decimals_unless_they_are_small(value: float | None, text: str) -> None:
    assert figure(value) == text


def hostile() -> Document:
    """A report in which every text from outside tries to leave its place."""
    answer = SubjectAnswer(text=HOSTILE, tokens=9, finish_reason="length", metrics={"right": 0})
    row = AnsweredRow(
        row=1,
        turns=[("user", HOSTILE)],
        accepted=[HOSTILE],
        answers={"Tuned": answer, "Base": answer},
        columns={HOSTILE: HOSTILE},
    )
    return evaluation_report(facts_of(row, predictions_uri=f"pvc://{HOSTILE}", run=HOSTILE))


def test_texts_of_models_rows_and_columns_are_escaped() -> None:
    text = evaluation_page(hostile())

    outline = Outline(text)
    assert outline.open == []
    assert outline.tags.count("script") == 1
    assert "img" not in outline.tags
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert HOSTILE not in text


def test_only_the_page_s_own_script_may_run() -> None:
    text = evaluation_page(hostile())

    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    allowed = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'"


def test_the_page_loads_nothing() -> None:
    text = evaluation_page(evaluation_report(facts_of(*ROWS)))

    assert Outline(text).loads == []
    assert not re.search(r"https?:|url\(|@import", text)


def test_all_rows_are_in_the_page_without_a_script_and_the_filters_are_hidden() -> None:
    rows = [answered(number, Tuned=0, Base=0) for number in range(1, OPEN_ROWS + 11)]
    text = evaluation_page(evaluation_report(facts_of(*rows)))

    assert text.count('<article class="row') == OPEN_ROWS + 10
    assert "<form hidden>" in text
    assert "<summary>10 more rows</summary>" in text


def test_a_row_names_its_outcomes_for_the_filters_and_only_those_that_occur_can_be_chosen() -> None:
    text = evaluation_page(evaluation_report(facts_of(*ROWS)))

    assert re.findall(r'data-outcomes="([^"]*)"', text) == ["same", "better"]
    assert re.findall(r'name="outcome" value="([^"]*)"', text) == ["", "better", "same"]


def test_long_texts_are_truncated_with_the_number_of_omitted_characters() -> None:
    report = evaluation_report(
        facts_of(answered(1, text="a" * (MAX_TEXT_CHARACTERS + 1234), Tuned=0, Base=0))
    )

    (row,) = report["answers"]
    assert row["answers"][0]["text"] == "a" * MAX_TEXT_CHARACTERS
    assert row["answers"][0]["charactersOmitted"] == 1234
    assert "1,234 more characters" in evaluation_page(report)


def test_a_long_conversation_shows_its_first_and_last_turns() -> None:
    turns = [("user", f"turn {number}") for number in range(1, 21)]
    report = evaluation_report(facts_of(replace(answered(1, Tuned=0, Base=0), turns=turns)))

    (row,) = report["answers"]
    assert [turn["text"] for turn in row["input"]] == [f"turn {number}" for number in (1, 16, 17, 18, 19, 20)]
    assert row["turnsOmitted"] == 14
    assert "14 more turns" in evaluation_page(report)


def test_the_size_is_bounded_whatever_the_models_answer() -> None:
    subjects = ("Tuned", "Base", "Prompted", "Live")
    rows = [
        replace(
            answered(number, text="\x1b<&" * 20_000, **dict.fromkeys(subjects, 0.0)),
            turns=[("user", "ü" * 50_000)] * 100,
            accepted=["b" * 9_000 + str(other) for other in range(50)],
        )
        for number in range(1, 701)
    ]
    report = evaluation_report(facts_of(*rows))

    assert len(encode(report)) < 16 << 20
    assert len(evaluation_page(report).encode()) < 24 << 20


def test_characters_that_utf8_cannot_encode_are_escaped() -> None:
    report = evaluation_report(facts_of(answered(1, text="\ud83d \x1b[31m ü", Tuned=0, Base=0)))

    assert json.loads(encode(report))["answers"][0]["answers"][0]["text"] == "\\ud83d \\x1b[31m ü"
    assert evaluation_page(report).encode()


def test_a_gate_shows_what_it_asks_and_the_bound_that_decides_it() -> None:
    gates = [
        ShownGate(metric="right", min=0.8, confidence=0.95, value=0.91, low=0.872),
        ShownGate(
            metric="right", min_gain=0, over="Base", confidence=0.9, gain=0.1, gain_low=-0.02, more_rows=120
        ),
        ShownGate(metric="nats", max=2.5, value=1.25),
        ShownGate(metric="right", min_gain=0.2, over="Live", undecided="Live could not be read."),
    ]
    report = evaluation_report(facts_of(*ROWS, gates=gates))

    assert [gate_lines(gate) for gate in report["gates"]] == [
        [GateLine("right at least 0.8", "0.910", "at least 0.872 with 95 % confidence")],
        [GateLine("right better than Base by more than 0", "+0.100", "at least -0.020 with 90 % confidence")],
        [GateLine("nats at most 2.5", "1.250", "")],
        [GateLine("right better than Live by at least 0.2", "–", "")],
    ]
    assert [gate_note(gate) for gate in report["gates"]] == [
        "",
        "About 120 more rows would decide it.",
        "",
        "Live could not be read.",
    ]
    assert [gate["verdict"] for gate in report["gates"]] == ["Passed", "Undecided", "Passed", "Undecided"]
    shown = re.findall(r'class="tag (\w+)">([^<]+)<', evaluation_page(report).split("<h2>Gates")[1])
    assert shown[:4] == [(gate["verdict"], VERDICTS[gate["verdict"]]) for gate in report["gates"]]


def test_findings_and_models_that_were_not_measured_are_shown() -> None:
    facts = facts_of(
        *ROWS,
        findings=[ShownFinding(check="no-change", veto=True, message="The weights change nothing.")],
        unmeasured={"Live": "Its weights cannot be read."},
    )
    text = evaluation_page(evaluation_report(facts))

    assert '<article class="error"><h3>no-change <span class="tag wrong">no promotion</span></h3>' in text
    assert "<h3>Live was not measured</h3>" in text
    assert "Findings" in Outline(text).headings


def test_the_prompt_of_prompted_is_shown_and_escaped() -> None:
    prompt = ShownPrompt(
        system_prompt="Name the team.",
        examples=[(12, [("user", HOSTILE), ("assistant", "billing")])],
        first=f"<s>{HOSTILE}",
    )
    text = evaluation_page(evaluation_report(facts_of(*ROWS, prompt=prompt)))

    outline = Outline(text)
    assert "The prompt of Prompted" in outline.headings
    assert outline.tags.count("script") == 1
    assert "Name the team." in text
    assert "<h3>Training row 12</h3>" in text
    assert "&lt;s&gt;" in text


def test_the_learning_curve_of_the_training_is_shown() -> None:
    empty = dict.fromkeys(("lossLow", "lossHigh", "gain", "gainLow", "gainHigh", "problem"))
    points = [{**empty, "share": share, "rows": 100 * share, "loss": 2 - share} for share in (0.5, 1)]
    curve = {"validationRows": 40, "outlook": "More rows <may> help", "points": points, "lossUnit": "nats"}

    text = evaluation_page(evaluation_report(facts_of(*ROWS, learning_curve=curve)))

    assert Outline(text).headings.count("Learning curve") == 1
    assert "More rows &lt;may&gt; help." in text


def part(value: str | None, rows: int = 10) -> ScoreSlice:
    score = ShownScore(metric="right", subject="Tuned", value=0.5, rows=rows, low=0.25, high=0.75)
    return ScoreSlice(value=value, rows=rows, scores=[score])


def test_slices_show_rows_and_the_deciding_metric_with_its_interval() -> None:
    facts = facts_of(*ROWS, slice_by="language", slices=[part("de"), part("<b>"), part(None)])

    text = evaluation_page(evaluation_report(facts))

    assert "By language" in Outline(text).headings
    assert text.count("<small>0.250 to 0.750</small>") == 3
    assert '<span dir="auto">&lt;b&gt;</span>' in text
    assert "<i>without a value</i>" in text


def test_a_column_that_was_not_kept_says_what_to_do() -> None:
    text = evaluation_page(evaluation_report(facts_of(*ROWS, slice_by="language")))

    assert "No row has a value of language. Name it in <code>keepColumns</code>" in text


def test_rare_values_are_counted() -> None:
    slices = [part(f"value {number}") for number in range(MAX_SLICES + 1)]
    report = evaluation_report(facts_of(*ROWS, slice_by="language", slices=slices))

    assert (len(report["slices"]["parts"]), report["slices"]["partsOmitted"]) == (MAX_SLICES, 1)
    assert "1 rarer value is not shown" in evaluation_page(report)


def test_labels_are_ordered_by_frequency_and_other_answers_have_the_last_column() -> None:
    pairs = [("a", "b"), ("b", "b"), ("b", "b"), ("b", None), ("a", "c")]

    assert confusion(pairs) == {"labels": ["b", "a"], "counts": [[2, 0, 1], [1, 0, 1]]}


def test_rare_labels_share_a_row() -> None:
    frequent = [(f"label {number:02}", f"label {number:02}") for number in range(MAX_SHOWN_LABELS)] * 2
    matrix = confusion([*frequent, ("rare", "rare"), ("seldom", "label 00")])

    assert len(matrix["labels"]) == MAX_SHOWN_LABELS
    assert matrix["counts"][-1] == [1, *[0] * (MAX_SHOWN_LABELS - 1), 1]
    assert sum(map(sum, matrix["counts"])) == 2 * MAX_SHOWN_LABELS + 2


def test_a_classification_has_a_matrix_per_model() -> None:
    labels = {"Tuned": [("a", "a"), ("a", None)], "Base": [("a", "<i>"), ("a", None)]}
    text = evaluation_page(evaluation_report(facts_of(*ROWS, labels=labels)))

    assert text.count('<table class="confusion">') == 2
    assert "<summary>Base</summary>" in text


def test_equal_evaluations_have_equal_reports() -> None:
    assert encode(evaluation_report(facts_of(*ROWS))) == encode(evaluation_report(facts_of(*ROWS)))


def test_the_lengths_of_the_answers_are_shown_per_model() -> None:
    report = evaluation_report(facts_of(*ROWS))

    assert [(each["subject"], each["max"]) for each in report["lengths"]] == [("Tuned", 2), ("Base", 2)]
    assert "Lengths of answers" in Outline(evaluation_page(report)).headings


JUDGE = ShownJudge(
    metric="judge/tone",
    against="Base",
    model="referee",
    endpoint="https://judge.example/v1",
    prompt=HOSTILE,
    prompt_digest="sha256:" + "7a" * 32,
    replies="pvc://artifacts/runs/1f1f/evaluate/judge-tone.jsonl",
    win_rate=0.7,
    low=0.6,
    high=0.8,
    rows=100,
    rows_in_split=400,
    won=60,
    tied=20,
    lost=20,
    same=10,
    calls=180,
    unreadable=0,
    flipped=9,
    longer=60,
)


def test_a_judge_is_shown_with_what_says_how_far_to_trust_it() -> None:
    said = JudgedRow(metric="judge/tone", against="Base", verdict="lost", reason=HOSTILE)
    rows = (ROWS[0], replace(ROWS[1], judged=[said]))
    report = evaluation_report(facts_of(*rows, judges=[JUDGE]))
    (judge,) = report["judges"]
    text = evaluation_page(report)

    assert (judge["winRate"], judge["positionBias"], judge["longerPreferred"]) == (0.7, 0.1, 0.75)
    assert "Judges" in Outline(text).headings
    assert "0.600 to 0.800" in text
    assert "10 %" in text
    assert "75 %" in text
    assert "100 of 400, a random sample by maxCalls" in text
    assert HOSTILE not in text
    assert text.count("judge/tone lost against Base") == 1
    # The judge has no value per row, so it does not decide which rows are the worst.
    assert report["decidedBy"] == "right"


def test_a_judge_without_verdicts_has_no_shares() -> None:
    none: dict[str, Any] = {
        "won": 0,
        "tied": 0,
        "lost": 0,
        "same": 0,
        "flipped": 0,
        "longer": 0,
        "win_rate": None,
    }
    report = evaluation_report(facts_of(*ROWS, judges=[replace(JUDGE, **none, low=None, high=None)]))
    (judge,) = report["judges"]

    assert (judge["winRate"], judge["positionBias"], judge["longerPreferred"]) == (None, None, None)
    assert Outline(evaluation_page(report)).open == []


def test_every_field_is_in_the_documentation() -> None:
    text = (DOCS / "report.md").read_text()
    _, section = text.split("## The evaluation report")
    report = evaluation_report(facts_of(*ROWS, judges=[JUDGE]))

    assert [name for name in (*report, *report["judges"][0]) if f"`{name}" not in section] == []
