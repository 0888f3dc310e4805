# SPDX-License-Identifier: Apache-2.0
"""Each branch of the promotion rule: the verdict of the run, and approval or rejection by a person."""

from typing import Any

import pytest

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.manifests.labels import NEVER_PROMOTED
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.model_lines import CheckpointIndex
from finetune_operator.reconcile.promotion import decide_end_of_run, decide_promotion
from finetune_operator.status.reasons import Reason
from finetune_trainer.contract.base import lenient_validator
from tests.unit.operator.runobjects import JOB_UID, digest, finetunejob

LINE = "ticket-routing"
OURS = "ours"
STAMP = "2030-01-02T03:00:00Z"
ENDED = {"type": "Ready", "status": "True", "reason": "AwaitingApproval", "lastTransitionTime": STAMP}
GATE = {"metric": "exact_match", "verdict": "Passed", "message": "exact_match 0.95 ≥ 0.8"}


def evaluation(verdict: str = "Passed", checkpoint: str = OURS, champion: str | None = None) -> Manifest:
    gates = [] if verdict == "NoGates" else [GATE]
    return {"checkpoint": checkpoint, "verdict": verdict, "gates": gates, "champion": champion}


def run(judged: Manifest | None, *, ended: bool = False, **promotion: Any) -> FineTuneJob:
    manifest = finetunejob(promotion=promotion)
    manifest["metadata"].update(namespace="team", generation=1)
    status = {"observedGeneration": 1, "conditions": [ENDED] if ended else []}
    if judged is not None:
        status["evaluation"] = judged
    job: FineTuneJob = lenient_validator(FineTuneJob).validate_python({**manifest, "status": status})
    return job


RUN: list[tuple[str, FineTuneJob, str | None, Reason, str]] = [
    ("not evaluated", run(None), None, Reason.EVALUATING, "has not evaluated it yet"),
    ("ended first", run(None, ended=True), None, Reason.NOT_PROMOTED, "ended without an evaluation"),
    ("gates missed", run(evaluation("Failed")), None, Reason.GATE_FAILED, "exact_match 0.95"),
    ("undecided", run(evaluation("Undecided")), None, Reason.EVALUATION_UNDECIDED, "exact_match 0.95"),
    ("a verdict of a newer release", run(evaluation("Postponed")), None, Reason.EVALUATION_UNDECIDED, "0.95"),
    (
        "gates missed, by hand",
        run(evaluation("Failed"), mode="Manual"),
        None,
        Reason.GATE_FAILED,
        "exact_match 0.95",
    ),
    ("by hand", run(evaluation(), mode="Manual"), None, Reason.AWAITING_APPROVAL, "spec.approval.state"),
    ("never", run(evaluation(), mode="Never"), None, Reason.PROMOTION_DISABLED, "promotion.mode is Never"),
    (
        "never, without gates",
        run(evaluation("NoGates"), mode="Never"),
        None,
        Reason.PROMOTION_DISABLED,
        "no gates",
    ),
    ("never, and gates missed", run(evaluation("Failed"), mode="Never"), None, Reason.GATE_FAILED, "0.95"),
    ("no gates", run(evaluation("NoGates")), None, Reason.NOT_PROMOTED, "the run has no gates"),
    (
        "no gates needed",
        run(evaluation("NoGates"), mode="Always"),
        None,
        Reason.PROMOTED,
        f"promoted in model line {LINE}: without evaluation",
    ),
    (
        "passed",
        run(evaluation()),
        None,
        Reason.PROMOTED,
        f"promoted in model line {LINE}: exact_match 0.95 ≥ 0.8",
    ),
    (
        "against the champion",
        run(evaluation(champion="rival")),
        "rival",
        Reason.PROMOTED,
        f"promoted in model line {LINE}",
    ),
    (
        "another champion",
        run(evaluation()),
        "rival",
        Reason.PROMOTING,
        "with the current champion first: rival",
    ),
    (
        "champion withdrawn",
        run(evaluation(champion="rival")),
        None,
        Reason.PROMOTING,
        "with the current champion first: none",
    ),
    (
        "another champion after the end",
        run(evaluation(), ended=True),
        "rival",
        Reason.NOT_PROMOTED,
        "the champion has changed",
    ),
]


@pytest.mark.parametrize(
    ("job", "champion", "reason", "message"), [row[1:] for row in RUN], ids=[row[0] for row in RUN]
)
def test_the_runs_verdict(job: FineTuneJob, champion: str | None, reason: Reason, message: str) -> None:
    decision = decide_end_of_run(job, job.status.evaluation, champion)
    assert decision.reason == reason
    assert message in decision.message


@pytest.mark.parametrize("verdict_", ["Failed", "Undecided"])
def test_a_run_that_never_promotes_does_not_advise_an_approval(verdict_: str) -> None:
    job = run(evaluation(verdict_), mode="Never")
    message = decide_end_of_run(job, job.status.evaluation, None).message
    assert "approval" not in message
    assert "To try again, create a FineTuneJob with another name" in message


SPEC: Manifest = {
    "modelLine": LINE,
    "digest": digest("c"),
    "type": "Adapter",
    "step": 40,
    "epoch": 3.0,
    "uri": f"pvc://artifacts/checkpoints/{'c' * 64}",
    "lineage": {
        "baseModel": {"uri": "pvc://models/gemma", "digest": digest("b")},
        "datasetVersion": "tickets-1",
        "job": {"name": "tickets-v1", "uid": JOB_UID},
        "method": {"objective": "SFT", "type": "LoRA"},
        "adapter": {"r": 16},
        "hyperparameters": {
            "epochs": 3,
            "learningRate": 0.0002,
            "batchSize": 8,
            "maxBatchRows": 4,
            "warmupRatio": 0.05,
            "scheduler": "Linear",
            "weightDecay": 0,
            "maxSequenceLength": 128,
            "seed": 42,
            "totalSteps": 40,
            "saveEverySteps": 10,
        },
        "trainerImage": "registry.example/trainer:1",
    },
}


def record(
    approval: str | None = None,
    *,
    name: str = OURS,
    created: str = STAMP,
    promoted: str | None = None,
    condition: str | None = None,
    never: bool = False,
) -> Checkpoint:
    """A Checkpoint of the run; `condition` is the message of its condition Promoted."""
    status: Manifest = {"observedGeneration": 1, **({"promotedAt": promoted} if promoted else {})}
    if condition is not None:
        known = {"type": "Promoted", "status": "True", "reason": "Promoted", "message": condition}
        status["conditions"] = [{**known, "lastTransitionTime": STAMP}]
    return Checkpoint.model_validate(
        {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": "Checkpoint",
            "metadata": {
                "name": name,
                "namespace": "team",
                "uid": f"uid-{name}",
                "generation": 1,
                "creationTimestamp": created,
                "annotations": {NEVER_PROMOTED: "true"} if never else {},
            },
            "spec": {**SPEC, **({"approval": {"state": approval, "reason": "seen"}} if approval else {})},
            "status": status,
        }
    )


OLDER = record(name="rival", created="2030-01-01T00:00:00Z", promoted="2030-01-01T00:00:00Z")
YOUNGER = record(name="rival", created="2030-01-03T00:00:00Z", promoted="2030-01-03T00:00:00Z")
MANUAL = run(evaluation(), mode="Manual")

CHECKPOINT: list[tuple[str, Checkpoint, FineTuneJob | None, Checkpoint | None, Reason, str]] = [
    ("the run promotes", record(), run(evaluation()), None, Reason.PROMOTED, "exact_match 0.95"),
    ("the run does not", record(), run(evaluation("Failed")), None, Reason.GATE_FAILED, "exact_match 0.95"),
    ("the run is gone", record(), None, None, Reason.NOT_PROMOTED, "FineTuneJob tickets-v1 does not exist"),
    (
        "the run has a better one",
        record(),
        run(evaluation(checkpoint="better")),
        None,
        Reason.NOT_PROMOTED,
        "better checkpoint better",
    ),
    ("not evaluated", record(), run(None), None, Reason.EVALUATING, "has not evaluated it yet"),
    (
        "never",
        record(never=True),
        run(evaluation(), mode="Never"),
        None,
        Reason.PROMOTION_DISABLED,
        "promotion.mode of FineTuneJob tickets-v1 is Never",
    ),
    (
        "never, approved",
        record("Approved", never=True),
        run(evaluation(), mode="Never"),
        None,
        Reason.PROMOTION_DISABLED,
        "an approval does not promote it either",
    ),
    (
        "never, approved, run gone",
        record("Approved", never=True),
        None,
        None,
        Reason.PROMOTION_DISABLED,
        "pin it in an InferenceDeployment",
    ),
    ("never, rejected", record("Rejected", never=True), None, None, Reason.REJECTED, "rejected: seen"),
    ("waits for a person", record(), MANUAL, None, Reason.AWAITING_APPROVAL, "spec.approval.state"),
    ("approved", record("Approved"), MANUAL, None, Reason.PROMOTED, "approved, and promoted"),
    (
        "approved, gates missed",
        record("Approved"),
        run(evaluation("Failed")),
        None,
        Reason.PROMOTED,
        "approved",
    ),
    ("approved, run gone", record("Approved"), None, None, Reason.PROMOTED, "approved, and promoted"),
    ("approved, newer than the champion", record("Approved"), MANUAL, OLDER, Reason.PROMOTED, "approved"),
    (
        "approved, older than the champion",
        record("Approved"),
        MANUAL,
        YOUNGER,
        Reason.NOT_PROMOTED,
        "approved, but rival, which is newer, is the champion",
    ),
    (
        "approved, and the run promotes",
        record("Approved"),
        run(evaluation(champion="rival")),
        YOUNGER,
        Reason.PROMOTED,
        "exact_match 0.95",
    ),
    (
        "approved, and the run is about to",
        record("Approved"),
        run(evaluation()),
        YOUNGER,
        Reason.PROMOTING,
        "with the current champion first: rival",
    ),
    ("rejected", record("Rejected"), run(evaluation()), None, Reason.REJECTED, "rejected: seen"),
    (
        "rejected after its promotion",
        record("Rejected", promoted=STAMP),
        run(evaluation()),
        None,
        Reason.REJECTED,
        "rejected: seen",
    ),
    (
        "promoted already",
        record(promoted=STAMP, condition="for its gates"),
        run(evaluation("Failed")),
        None,
        Reason.PROMOTED,
        "for its gates",
    ),
    (
        "promoted already, its condition lost",
        record(promoted=STAMP),
        None,
        None,
        Reason.PROMOTED,
        f"promoted in model line {LINE}",
    ),
]


@pytest.mark.parametrize(
    ("checkpoint", "job", "champion", "reason", "message"),
    [row[1:] for row in CHECKPOINT],
    ids=[row[0] for row in CHECKPOINT],
)
def test_the_checkpoints_decision(
    checkpoint: Checkpoint, job: FineTuneJob | None, champion: Checkpoint | None, reason: Reason, message: str
) -> None:
    index = CheckpointIndex((checkpoint,) if champion is None else (checkpoint, champion))
    decision = decide_promotion(checkpoint, job, index)
    assert decision.reason == reason
    assert message in decision.message


@pytest.mark.parametrize(("job", "champion"), [row[1:3] for row in RUN], ids=[row[0] for row in RUN])
def test_without_a_persons_word_the_checkpoint_decides_as_its_run(
    job: FineTuneJob, champion: str | None
) -> None:
    checkpoint = record()
    index = CheckpointIndex((checkpoint,) if champion is None else (checkpoint, OLDER))
    assert decide_promotion(checkpoint, job, index) == decide_end_of_run(job, job.status.evaluation, champion)
