# SPDX-License-Identifier: Apache-2.0
"""The report of a run and the comparison of runs, as a person and as a program reads them."""

import io
from typing import Any

from rich.console import Console, RenderableType

from finetune_client.backend import Object
from finetune_client.comparison import RunComparison
from finetune_client.run_report import RunReport
from finetune_operator.api.dataset import Dataset
from finetune_operator.api.finetune_job import FineTuneJob
from tests.mergepatch import merged
from tests.unit.client.decidedobjects import golden, run_after

TUNED = {
    "metric": "exact_match",
    "subject": "Tuned",
    "value": 0.95,
    "rows": 240,
    "low": 0.915,
    "high": 0.9713,
}


def shown(renderable: RenderableType, width: int = 110) -> str:
    out = io.StringIO()
    Console(file=out, width=width, highlight=False).print(renderable)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def run(case: str, name: str = "tickets-v1", **patch: Any) -> FineTuneJob:
    return FineTuneJob.model_validate(merged(run_after(case, name=name), patch, by_name=True))


def dataset(**status: Any) -> Dataset:
    return Dataset.model_validate(golden("dataset", "Dataset/tickets", {"status": status}))


def test_the_report_of_a_vetoed_run_has_its_scores_gates_finding_cost_and_page() -> None:
    report = RunReport(run("run-is-vetoed"), None)
    assert (
        shown(report.render())
        == """\
FineTuneJob tickets-v1  model line ticket-routing
Vetoed: Checkpoint tickets-v1-0b5e7-40-cccccccc is not promoted: 2 answers repeat an e-mail address of the
training rows: remove it from the rows; exact_match 0.95, at least 0.9211 at confidence 0.95 (≥ 0.8);
exact_match gain 0.95 over Base (0 → 0.95) ≥ 0.3

Evaluation on the test split, with 95 % intervals
┏━━━━━━━━━━━━━━━━━━━━━━━━┳━━━━━━━━━━━┳━━━━━━━━━━━┳━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━┓
┃ metric                 ┃ base      ┃ tuned     ┃ gates                                                     ┃
┡━━━━━━━━━━━━━━━━━━━━━━━━╇━━━━━━━━━━━╇━━━━━━━━━━━╇━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━┩
│ exact_match (240 rows) │ 0.000     │ 0.950     │ Passed: exact_match 0.95, at least 0.9211 at confidence   │
│                        │ 0.00–0.02 │ 0.92–0.97 │ 0.95 (≥ 0.8)                                              │
│                        │           │           │ Passed: exact_match gain 0.95 over Base (0 → 0.95) ≥ 0.3  │
│ loss (240 rows)        │ 3.100     │ 0.200     │                                                           │
└────────────────────────┴───────────┴───────────┴───────────────────────────────────────────────────────────┘

Findings
memorization, blocks the promotion  2 answers repeat an e-mail address of the training rows: remove it from
                                    the rows

cost  EUR 0.15 (215 device seconds)

Pages
evaluation  pvc://artifacts/runs/0b5e7a10-0000-4000-8000-000000000001/evaluate/evaluation.html"""
    )


def test_findings_about_rows_come_from_the_dataset_and_the_run_after_those_that_block() -> None:
    job = run(
        "run-is-vetoed",
        status={
            "evaluation": {"untestedAnswers": 3},
            "droppedRows": {"rows": 7, "percent": 2.5},
            "leakedRows": 2,
            "problems": ["row 3 has no answer"],
            "advice": [{"reason": "SmallerProfile", "message": "profile small is large enough"}],
        },
    )
    rows = dataset(
        problems=["row 17 has no completion"],
        warnings=["row 5 contains a secret (AWS key)"],
        problemCount=4,
        warningCount=9,
        report="pvc://artifacts/report.html",
    )
    report = RunReport(job, rows)
    assert [(each.about, each.blocks) for each in report.findings] == [
        ("memorization", True),
        ("untested answers", False),
        ("Dataset tickets", False),
        ("Dataset tickets", False),
        ("Dataset tickets", False),
        ("rows", False),
        ("rows", False),
        ("rows", False),
        ("advice", False),
    ]
    text = shown(report.render(), 200)
    for sentence in (
        "3 distinct answers of the training rows are in no row of the test split",
        "row 17 has no completion",
        "row 5 contains a secret (AWS key)",
        "13 problems and warnings in all",
        "7 rows (2.5 %) are too long and were not used",
        "2 training rows repeat rows of the evaluation",
        "profile small is large enough",
        "rows        pvc://artifacts/report.html",
    ):
        assert sentence in text


def test_a_verdict_by_few_rows_and_rows_of_a_later_version_are_said() -> None:
    report = RunReport(run("run-misses-its-gates"), dataset(latestVersion="tickets-later", warnings=["w"]))
    assert [each.about for each in report.findings] == ["few rows", "Dataset tickets, latest version"]
    assert "Gates on exact_match are decided by the values of 24 rows" in report.findings[0].message


def test_the_prediction_stands_next_to_what_training_took() -> None:
    predicted = run("run-records-a-prediction")
    text = shown(RunReport(predicted, None).render())
    assert "measured   training has not ended" in text
    assert "prediction  training may not fit: predicted peak of 72 of 80 GiB" in text
    measured = {"deviceMemoryBytes": 70 << 30, "seconds": 8000.0, "cost": 11.11}
    text = shown(
        RunReport(
            run("run-records-a-prediction", status={"prediction": {"measured": measured}}), None
        ).render()
    )
    assert "predicted  2 h 10 min to 2 h 31 min, 72 of 80 GiB, EUR 10.81 to 12.61" in text
    assert "measured   2 h 13 min, 70 GiB, EUR 11.11" in text


def test_lost_device_time_is_named_with_its_cause() -> None:
    lost = [{"cause": "Preemption", "deviceSeconds": 20.0}]
    text = shown(RunReport(run("run-ends-promoted", status={"cost": {"lost": lost}}), None).render(), 200)
    assert "lost: Preemption  20 device seconds (training was repeated after a pod was preempted" in text


def test_a_report_of_a_run_that_has_just_started_says_what_it_does() -> None:
    job = run("run-starts-preflight")
    assert shown(RunReport(job, None).render()).startswith(
        "FineTuneJob tickets-v1  model line ticket-routing\nQueued: the preflight pod is being created"
    )


def test_terminal_codes_in_messages_do_not_reach_the_terminal() -> None:
    job = run("run-is-vetoed", status={"problems": ["\x1b]0;owned\x07row \x9b31m"]})
    text = shown(RunReport(job, None).render())
    assert "\x1b" not in text
    assert "\x9b" not in text
    assert "�]0;owned�row �31m" in text


def test_the_report_as_json_has_the_parts_of_the_status_and_null_for_missing_ones() -> None:
    document = RunReport(run("run-is-vetoed"), None).to_json()
    assert document["run"] == "tickets-v1"
    assert document["state"]["reason"] == "Vetoed"
    assert document["evaluation"]["scores"][0] == TUNED
    assert document["findings"][0]["blocks"] is True
    assert document["cost"]["amount"] == 0.149306
    assert document["prediction"] is None


def runs(**second: Any) -> tuple[FineTuneJob, FineTuneJob]:
    """Two runs of one line; the second one has a lower rank, and the patch."""
    base: Object = {
        "spec": {"method": {"lora": {"r": 8}}, "suspend": True},
        "status": {"resolved": {"lora": {"r": 8}}},
    }
    patch = merged(base, second)
    return run("run-is-vetoed"), run("run-is-vetoed", "tickets-v2", **patch)


def test_only_fields_that_differ_are_compared_with_their_defaults() -> None:
    differences = RunComparison(runs()).differences
    assert differences["spec.method.lora.r"] == ("32", "8")
    assert "spec.suspend" not in differences
    assert "spec.modelLine" not in differences
    changed = RunComparison(runs(spec={"promotion": {"mode": "Manual"}})).differences
    assert changed["spec.promotion.mode"] == ("ByGates", "Manual")


def test_what_the_runs_chose_is_compared_too() -> None:
    chosen = {"resolved": {"lora": {"r": 32, "alpha": 128}, "datasetVersion": "tickets-eeeeeeeeeeee"}}
    differences = RunComparison(runs(status=chosen)).differences
    assert differences["chosen.lora.alpha"] == ("64", "128")
    assert differences["chosen.datasetVersion"] == ("tickets-dddddddddddd", "tickets-eeeeeeeeeeee")


def test_scores_stand_side_by_side_with_their_intervals_and_no_other_one_is_made_up() -> None:
    first, second = runs(status={"evaluation": {"datasetDigest": "sha256:" + "d" * 64}})
    text = shown(RunComparison((first, second)).render())
    assert "0.95 (0.915–0.971), 240 rows" in text
    assert "EUR 0.15 (215 device seconds)" in text
    assert "Each interval is of one run alone. No run was measured against another one" in text
    assert "cannot be compared" not in text


def test_runs_that_were_evaluated_on_other_rows_are_not_comparable_which_is_said() -> None:
    comparison = RunComparison(runs(status={"evaluation": {"datasetDigest": "sha256:" + "e" * 64}}))
    assert comparison.to_json()["sameRows"] is False
    assert RunComparison((run("run-is-vetoed"), run("run-ends-promoted", "tickets-v2"))).has_other_rows
    assert "evaluated on different rows: their scores cannot be compared" in shown(comparison.render())


def test_a_gain_over_the_champion_of_another_compared_run_is_shown_with_its_interval() -> None:
    gate = {
        "metric": "exact_match", "over": "Live", "verdict": "Passed", "message": "m", "confidence": 0.95,
        "gain": 0.02, "gainLow": -0.01, "gainHigh": 0.05,
    }  # fmt: skip
    first = run("run-ends-promoted")
    measured = {"live": first.status.checkpoints[0].name, "gates": [gate]}
    second = run("run-ends-promoted", "tickets-v2", status={"evaluation": measured, "checkpoints": []})
    comparison = RunComparison((first, second))
    assert [str(each) for each in comparison.paired] == [
        "exact_match: gain 0.02 of tickets-v2 over tickets-v1 (-0.01 to 0.05 at confidence 0.95)"
    ]
    assert "Each interval is of one run alone" not in shown(comparison.render())
    assert comparison.to_json()["pairedGains"][0]["gainHigh"] == 0.05
