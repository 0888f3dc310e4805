# SPDX-License-Identifier: Apache-2.0
"""python -m tools.docs.reportpictures

Take the pictures of the evaluation page in docs/pictures with Chromium, at the width of a desktop and of a
phone. They show tickets to teams, by four models. Rows, answers and numbers are made up. Without Chromium,
the pictures stay as they are.
"""

import random
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import stdev
from typing import Final

from finetune_trainer.contract.metrics import DEFAULT_METRICS, METRICS
from finetune_trainer.report.evaluation.content import evaluation_report
from finetune_trainer.report.evaluation.facts import (
    AnsweredRow,
    EvaluationFacts,
    MetricProperties,
    ScoreSlice,
    ShownGain,
    ShownGate,
    ShownPrompt,
    ShownScore,
    SubjectAnswer,
)
from finetune_trainer.report.html_page import evaluation_page
from finetune_trainer.statistics.estimate import SHOWN_LEVEL, compute_needed_rows, one_sided
from finetune_trainer.statistics.proportions import PairedProportions, Proportion
from tools.docs import chromium
from tools.docs.pictures import PICTURES

TICKETS: Final = {
    "billing": (
        "I was charged twice for invoice R-{number}. Please refund one of the payments.",
        "Die Rechnung R-{number} enthält eine falsche Umsatzsteuer-ID. Bitte korrigieren Sie das.",
    ),
    "shipping": (
        "Order {number} has not arrived, although the tracking page says that it was delivered on Monday.",
        "Das Paket {number} kam beschädigt an.\nDie Ecke ist eingedrückt, und das Glas ist gesprungen.",
    ),
    "sales": (
        "We need {number} licences for a school. Is there a discount for education?",
        "Bitte senden Sie mir ein Angebot für {number} Stück bis Freitag.",
    ),
    "technical support": (
        "The app shows error {number} when I open the settings page. I have reinstalled it twice.",
        "Nach dem Update startet das Gerät mit dem Code {number} neu, sobald ich Bluetooth einschalte.",
    ),
}
SKILLS: Final = {"Tuned": 0.91, "Base": 0.08, "Prompted": 0.72, "Live": 0.86}
"""Models, and the share of rows that each answers right."""
RAMBLING: Final = (
    "Thank you for your message. To help you further, I would first need to know a few details about your"
    " order, such as the date on which you placed it and the address to which it was"
)


CONFIDENCE: Final = 0.95
SYSTEM_PROMPT: Final = f"Answer with the name of one team: {', '.join(TICKETS)}. Write nothing else."


def sample_facts(rows: int = 200) -> EvaluationFacts:
    """The facts of an evaluation of so many rows."""
    answered = list(_rows(rows))
    metrics = [
        MetricProperties(
            name=name,
            description=METRICS[name].description,
            lower_is_better=METRICS[name].lower_is_better,
            is_fraction=METRICS[name].is_fraction,
            is_zero_or_one=METRICS[name].kind == "Proportion",
        )
        for name in DEFAULT_METRICS
    ]
    scores = [_score(metric, subject, answered) for metric in metrics for subject in SKILLS]
    languages = ("en", "de")
    return EvaluationFacts(
        run="0b1c7a54-7c2e-4bb5-a1a9-7d5e8c1f0d3e",
        checkpoint=f"sha256:{'6a9bc365' * 8}",
        base_model=f"sha256:{'1c62375f' * 8}",
        dataset=f"sha256:{'5e8c1f0d' * 8}",
        split="test",
        subjects=tuple(SKILLS),
        metrics=metrics,
        scores=scores,
        gains=[
            _gain(metric, subject, answered) for metric in metrics for subject in SKILLS if subject != "Tuned"
        ],
        rows=answered,
        predictions_uri="pvc://artifacts/runs/0b1c7a54-7c2e-4bb5-a1a9-7d5e8c1f0d3e/predictions.jsonl",
        prompt=ShownPrompt(
            system_prompt=SYSTEM_PROMPT,
            examples=[
                (number, [("user", ticket.format(number=4711)), ("assistant", team)])
                for number, (team, (ticket, _)) in enumerate(TICKETS.items(), 12)
            ],
            first=f"<system>{SYSTEM_PROMPT}<user>…",
        ),
        gates=_gates(metrics[0], answered),
        slice_by="language",
        slices=[
            ScoreSlice(
                value=language,
                rows=len(part),
                scores=[_score(metric, subject, part) for metric in metrics for subject in SKILLS],
            )
            for language in languages
            if (part := [row for row in answered if row.columns["language"] == language])
        ],
        labels={
            subject: [
                (row.accepted[0], text if (text := row.answers[subject].text) in TICKETS else None)
                for row in answered
            ]
            for subject in SKILLS
        },
    )


def _rows(count: int) -> Iterator[AnsweredRow]:
    chance = random.Random(1)  # noqa: S311 - a sample, and the same one each time
    for row in range(1, count + 1):
        team, language = chance.choice(list(TICKETS)), chance.choice((0, 1))
        yield AnsweredRow(
            row=row,
            turns=[
                ("system", "Answer with the name of the team that handles the ticket."),
                ("user", TICKETS[team][language].format(number=chance.randrange(1000, 9999))),
            ],
            accepted=[team],
            answers={
                subject: _answer(team, chance, right=chance.random() < skill)
                for subject, skill in SKILLS.items()
            },
            columns={"language": ("en", "de")[language]},
        )


def _answer(team: str, chance: random.Random, *, right: bool) -> SubjectAnswer:
    rambles = not right and chance.random() < 0.3
    other = chance.choice([each for each in TICKETS if each != team])
    loss = chance.uniform(0, 0.2) if right else chance.uniform(1, 4)
    text = team if right else RAMBLING if rambles else other
    return SubjectAnswer(
        text=text,
        tokens=32 if rambles else len(text.split()) + 1,
        finish_reason="length" if rambles else "stop",
        metrics=dict(zip(DEFAULT_METRICS, (float(right), loss), strict=True)),
    )


def _score(metric: MetricProperties, subject: str, rows: list[AnsweredRow]) -> ShownScore:
    values = [row.value(metric.name, subject) or 0.0 for row in rows]
    value, low, high = sum(values) / len(values), 0.0, 0.0
    if metric.is_zero_or_one:
        interval = Proportion(round(sum(values)), len(values)).interval(SHOWN_LEVEL)
        low, high = interval.low, interval.high
    else:
        margin = 1.96 * stdev(values) / len(values) ** 0.5
        low, high = value - margin, value + margin
    return ShownScore(metric=metric.name, subject=subject, value=value, rows=len(rows), low=low, high=high)


def _gain(metric: MetricProperties, over: str, rows: list[AnsweredRow]) -> ShownGain:
    gains = [metric.gain(row.value(metric.name) or 0.0, row.value(metric.name, over) or 0.0) for row in rows]
    gain = sum(gains) / len(gains)
    if metric.is_zero_or_one:
        interval = _paired(gains).interval(SHOWN_LEVEL)
        return ShownGain(metric=metric.name, over=over, gain=gain, low=interval.low, high=interval.high)
    margin = 1.96 * stdev(gains) / len(gains) ** 0.5
    return ShownGain(metric=metric.name, over=over, gain=gain, low=gain - margin, high=gain + margin)


def _paired(gains: list[float]) -> PairedProportions:
    return PairedProportions(gains.count(1), gains.count(-1), len(gains))


def _gates(metric: MetricProperties, rows: list[AnsweredRow]) -> list[ShownGate]:
    right = round(sum(row.value(metric.name) or 0.0 for row in rows))
    value = Proportion(right, len(rows))
    gain = _paired(
        [(row.value(metric.name) or 0.0) - (row.value(metric.name, "Live") or 0.0) for row in rows]
    )
    needed = compute_needed_rows(gain, 0, CONFIDENCE)
    return [
        ShownGate(
            metric=metric.name,
            min=0.8,
            confidence=CONFIDENCE,
            value=value.value,
            low=one_sided(value, CONFIDENCE).low,
        ),
        ShownGate(
            metric=metric.name,
            min_gain=0.0,
            over="Live",
            confidence=CONFIDENCE,
            gain=gain.value,
            gain_low=one_sided(gain, CONFIDENCE).low,
            more_rows=None if needed is None else max(needed - len(rows), 0) or None,
        ),
    ]


SIZES: Final[Mapping[str, tuple[int, int]]] = {"evaluation": (1280, 2000), "evaluation-phone": (390, 2000)}
"""Width and height of each picture in pixels."""


def take(page: Path, picture: Path, size: tuple[int, int]) -> None:
    """Take a picture of a page. Raises subprocess.CalledProcessError."""
    chromium.show(page, f"--window-size={size[0]},{size[1]}", f"--screenshot={picture}")


def main() -> int:
    if not chromium.is_installed():
        print("docs/pictures/evaluation*.png stay as they are: there is no chromium", file=sys.stderr)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "evaluation.html"
        page.write_text(evaluation_page(evaluation_report(sample_facts())))
        for name, size in SIZES.items():
            take(page, PICTURES / f"{name}.png", size)
            print(f"docs/pictures/{name}.png: drawn", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
