# SPDX-License-Identifier: Apache-2.0
"""The size of a status with a large evaluation, and the table that kubectl describe shows."""

import json

from finetune_operator.api.evaluation import EvaluationSettings, EvaluationStatus, Gate, GateResult, Score
from finetune_operator.reconcile.verdicts import drop_other_champions, evaluation_status
from finetune_operator.status.progress import evaluation_table
from finetune_trainer.contract.evaluation import CheckFinding, GateEvidence
from finetune_trainer.contract.results import EvaluateResult
from finetune_trainer.contract.results import Score as ContractScore
from finetune_trainer.contract.vocabulary import Subject
from tests.unit.operator.runobjects import JOB, WEIGHTS
from tests.unit.operator.runsteps import ended

MAX_STATUS_BYTES = 32 << 10
SUBJECTS: tuple[Subject, ...] = ("Tuned", "Base", "Prompted", "Live")


def test_a_status_of_twenty_metrics_and_four_models_stays_small() -> None:
    metrics = [f"custom/an-own-metric-{number}" for number in range(20)]
    gates = tuple(
        Gate(metric=metric, min=0.1, min_gain=0, over="Live", confidence=0.95) for metric in metrics[:16]
    )
    result = EvaluateResult(
        checkpoint=WEIGHTS,
        split="test",
        scores=tuple(
            ContractScore(metric=metric, subject=subject, value=1 / 7, rows=12345, low=1 / 9, high=2 / 7)
            for subject in SUBJECTS
            for metric in metrics
        ),
        evidence=tuple(
            GateEvidence(
                gate=gate,
                value=1 / 7,
                rows=12345,
                low=1 / 9,
                high=2 / 7,
                gain=0,
                gain_low=-1 / 9,
                gain_high=1 / 9,
                more_rows=12345,
            )
            for gate in range(16)
        ),
        findings=tuple(CheckFinding(check="memorization", veto=True, message="x" * 512) for _ in range(3)),
        report_uri=f"s3://bucket/{'a' * 100}",
    )
    evaluation = evaluation_status(
        EvaluationSettings(gates=gates),
        result,
        checkpoint="c" * 63,
        source="Run",
        dataset_version="f" * 63,
        dataset_digest=WEIGHTS,
        champion="d" * 63,
        live="d" * 63,
    )
    table, status = evaluation_table(evaluation), ended().job(JOB).status
    assert status.display is not None
    display = status.display.model_copy(update={"evaluation": table})
    status = status.model_copy(update={"evaluation": evaluation, "display": display})

    assert len(evaluation.scores) == 80
    assert len(table) == 21
    assert len(json.dumps(status.to_dict()).encode()) <= MAX_STATUS_BYTES


def test_the_table_has_a_line_per_metric_with_intervals_and_verdicts() -> None:
    scores = (
        Score(metric="exact_match", subject="Tuned", value=0.95, rows=200, low=0.9103, high=0.9712),
        Score(metric="exact_match", subject="Base", value=0.5, rows=200),
        Score(metric="loss", subject="Tuned", value=0.25, rows=200),
    )
    gates = (
        GateResult(metric="exact_match", verdict="Passed", message=""),
        GateResult(metric="exact_match", verdict="NotApplicable", message=""),
    )
    evaluation = EvaluationStatus(checkpoint="c", verdict="Passed", scores=scores, gates=gates)

    assert evaluation_table(evaluation) == (
        "Metric       Tuned                 Base   Gate",
        "exact_match  0.950 [0.910, 0.971]  0.500  Passed, NotApplicable",
        "loss         0.250                 -",
    )
    assert evaluation_table(EvaluationStatus(checkpoint="c", verdict="NoGates")) == ()


def test_a_stored_result_of_a_former_champion_decides_nothing_in_a_line_without_one() -> None:
    spec = EvaluationSettings(gates=(Gate(metric="exact_match", min_gain=0, over="Live"),))
    scores = tuple(
        ContractScore(metric="exact_match", subject=subject, value=value, rows=24)  # type: ignore[arg-type]
        for subject, value in {"Tuned": 0.7, "Live": 0.8}.items()
    )
    result = EvaluateResult(checkpoint=WEIGHTS, split="test", scores=scores, live=WEIGHTS)

    evaluation = evaluation_status(
        spec,
        drop_other_champions(spec, result, None),
        checkpoint="c",
        source="Run",
        dataset_version=None,
        dataset_digest=None,
        champion=None,
    )

    assert [gate.verdict for gate in evaluation.gates] == ["NotApplicable"]
