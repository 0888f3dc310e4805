# SPDX-License-Identifier: Apache-2.0
"""Promotion and approval: which Checkpoint a model line stands for."""

from collections.abc import Iterable
from typing import Any

import pytest

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.model_lines import CheckpointIndex, is_older
from finetune_trainer.contract.evaluation import CheckFinding
from tests.unit.operator.memorycluster import MemoryCluster
from tests.unit.operator.runobjects import (
    CHECKPOINT,
    JOB,
    dataset,
    digest,
    evaluated,
    finetunejob,
    preflighted,
    prepared,
    prerequisites,
    trained,
)


def judged(
    tuned: float = 0.95,
    findings: tuple[CheckFinding, ...] = (),
    before: Iterable[Manifest] = (),
    **spec: Any,
) -> MemoryCluster:
    """A run at its end, and the objects from before it; `evaluation: None` leaves the evaluation out."""
    cluster = MemoryCluster(*prerequisites(), dataset(), *before, finetunejob(**spec))
    cluster.settle()
    results = [("prepare", prepared()), ("preflight", preflighted()), ("train", trained())]
    if cluster.job(JOB).spec.evaluation is not None:
        results.append(("evaluate", evaluated(tuned, findings=findings)))
    for stage, result in results:
        cluster.succeed(stage, result, after=10)
        cluster.settle()
    return cluster


def ends(cluster: MemoryCluster) -> tuple[str, str]:
    """Reasons of the run's end and of the Checkpoint's Promoted condition."""
    states = cluster.states("FineTuneJob", JOB)
    promoted = cluster.condition("Checkpoint", CHECKPOINT, "Promoted")
    assert promoted is not None
    return states.get("Ready") or states["Stalled"], f"{promoted['status']}/{promoted['reason']}"


@pytest.mark.parametrize(
    ("spec", "run", "checkpoint"),
    [
        ({}, "Promoted", "True/Promoted"),
        ({"promotion": {"mode": "Manual"}}, "AwaitingApproval", "False/AwaitingApproval"),
        ({"promotion": {"mode": "Never"}}, "PromotionDisabled", "False/PromotionDisabled"),
        (
            {"evaluation": None, "promotion": {"mode": "Never"}},
            "PromotionDisabled",
            "False/PromotionDisabled",
        ),
        ({"evaluation": None, "promotion": {"mode": "Manual"}}, "AwaitingApproval", "False/AwaitingApproval"),
        ({"evaluation": None}, "NotPromoted", "False/NotPromoted"),
        ({"evaluation": {"gates": []}}, "NotPromoted", "False/NotPromoted"),
        ({"evaluation": None, "promotion": {"mode": "Always"}}, "Promoted", "True/Promoted"),
        (
            {"evaluation": {"gates": [{"metric": "exact_match", "min": 0.99}]}},
            "GateFailed",
            "False/GateFailed",
        ),
        (
            {
                "evaluation": {"gates": [{"metric": "exact_match", "min": 0.99}]},
                "promotion": {"mode": "Never"},
            },
            "GateFailed",
            "False/PromotionDisabled",
        ),
    ],
)
def test_a_run_ends_as_its_gates_and_its_promotion_mode_say(spec: Any, run: str, checkpoint: str) -> None:
    assert ends(judged(**spec)) == (run, checkpoint)


VETO = CheckFinding(check="noChange", veto=True, message="the adapter answers as its base model does")
WARNING = CheckFinding(check="memorization", veto=False, message="1 answer repeats an address")


@pytest.mark.parametrize(
    ("spec", "passed"),
    [
        ({}, "Promoted"),
        ({"promotion": {"mode": "Manual"}}, "AwaitingApproval"),
        ({"evaluation": {}}, "NotPromoted"),
        ({"evaluation": {}, "promotion": {"mode": "Always"}}, "Promoted"),
    ],
)
def test_a_veto_blocks_the_promotion_whatever_the_gates_say(spec: dict[str, Any], passed: str) -> None:
    assert ends(judged(**spec))[0] == passed
    assert ends(judged(findings=(WARNING,), **spec))[0] == passed

    cluster = judged(findings=(WARNING, VETO), **spec)

    assert ends(cluster) == ("Vetoed", "False/Vetoed")
    for condition in (
        cluster.condition("FineTuneJob", JOB, "Stalled"),
        cluster.condition("Checkpoint", CHECKPOINT, "Promoted"),
    ):
        assert condition is not None
        assert "the adapter answers as its base model does" in condition["message"]
    events = {event.reason: event.message for event in cluster.events}
    assert "the adapter answers as its base model does" in events["Vetoed"]
    assert events["EvaluationWarning"] == "1 answer repeats an address"
    evaluation = cluster.job(JOB).status.evaluation
    assert evaluation is not None
    assert [(each.check, each.veto) for each in evaluation.findings or ()] == [
        ("noChange", True),
        ("memorization", False),
    ]


def test_a_release_that_knows_no_vetoes_promotes_no_vetoed_checkpoint() -> None:
    evaluation = judged(findings=(VETO,)).job(JOB).status.evaluation
    assert evaluation is not None
    assert evaluation.verdict == "Failed"


def test_a_person_may_promote_what_was_vetoed() -> None:
    cluster = judged(findings=(VETO,))
    approve(cluster)
    assert ends(cluster) == ("Vetoed", "True/Promoted")


def approve(cluster: MemoryCluster, state: str = "Approved") -> None:
    cluster.change("Checkpoint", CHECKPOINT, approval={"state": state, "reason": "checked by hand"})
    cluster.settle()


def test_approving_a_waiting_checkpoint_promotes_it() -> None:
    cluster = judged(promotion={"mode": "Manual"})
    approve(cluster)
    assert ends(cluster) == ("AwaitingApproval", "True/Promoted")
    assert [event.reason for event in cluster.events if event.reason == "Promoted"] == ["Promoted"]


def test_no_approval_promotes_a_checkpoint_of_a_run_that_never_promotes() -> None:
    cluster = judged(promotion={"mode": "Never"})
    approve(cluster)
    assert ends(cluster) == ("PromotionDisabled", "False/PromotionDisabled")

    cluster.remove("FineTuneJob", JOB)
    cluster.reconcile("Checkpoint", CHECKPOINT)
    assert ends_promoted(cluster) == ("False", "PromotionDisabled")
    assert "Promoted" not in [event.reason for event in cluster.events]


def test_rejecting_withdraws_a_promotion_without_forgetting_when_it_was() -> None:
    cluster = judged()
    promoted_at = cluster.objects["Checkpoint", CHECKPOINT]["status"]["promotedAt"]
    approve(cluster, "Rejected")
    condition = cluster.condition("Checkpoint", CHECKPOINT, "Promoted")
    assert condition is not None
    assert (condition["status"], condition["reason"]) == ("False", "Rejected")
    assert condition["message"] == "rejected: checked by hand"
    assert cluster.objects["Checkpoint", CHECKPOINT]["status"]["promotedAt"] == promoted_at


def record(name: str, character: str, promoted_at: str | None = None, **metadata: Any) -> Manifest:
    """Another Checkpoint of the line, of a run that is gone."""
    cluster = judged()
    manifest = cluster.objects["Checkpoint", CHECKPOINT]
    spec = {**manifest["spec"], "digest": digest(character)}
    spec["lineage"] = {**spec["lineage"], "job": {"name": "gone", "uid": f"gone-{character}"}}
    return {
        "apiVersion": manifest["apiVersion"],
        "kind": "Checkpoint",
        "metadata": {"name": name, **metadata},
        "spec": spec,
        "status": {"observedGeneration": 1, **({"promotedAt": promoted_at} if promoted_at else {})},
    }


@pytest.mark.parametrize(("others", "other_rows", "warned"), [(10, 0, True), (9, 0, False), (9, 5, False)])
def test_many_runs_that_are_judged_on_the_same_rows_are_warned_of(
    others: int, other_rows: int, warned: bool
) -> None:
    scores = judged().objects["Checkpoint", CHECKPOINT]["status"]["evaluations"]
    before = [record(f"run-{number}", "9") for number in range(others + other_rows)]
    for number, each in enumerate(before):
        each["spec"]["lineage"]["job"]["uid"] = f"gone-{number}"
        each["status"]["evaluations"] = scores
    for each in before[others:]:
        each["status"]["evaluations"] = [{**scores[0], "datasetDigest": digest("8")}]

    cluster = judged(before=before)

    texts = [event.message for event in cluster.events if event.reason == "EvaluationWarning"]
    said = [text for text in texts if "have been judged on the test rows of tickets-" in text]
    assert [text.partition(" have")[0] for text in said] == [
        "11 runs of the model line ticket-routing"
    ] * warned
    evaluated_ = cluster.condition("FineTuneJob", JOB, "Evaluated")
    assert evaluated_ is not None
    assert ("judge it on new rows with an Evaluation" in evaluated_["message"]) == warned


def test_a_verdict_reached_against_another_champion_is_renewed_before_promotion() -> None:
    cluster = judged(promotion={"mode": "Manual"})
    job = cluster.objects["FineTuneJob", JOB]
    job["spec"]["promotion"] = {"mode": "ByGates"}
    job["status"]["conditions"] = [c for c in job["status"]["conditions"] if c["type"] != "Ready"]
    cluster.add(record("rival", "9", "2030-01-02T03:00:10Z"))
    cluster.reconcile("Checkpoint", CHECKPOINT)
    assert ends_promoted(cluster) == ("False", "Promoting")
    cluster.settle()
    evaluation = cluster.job(JOB).status.evaluation
    assert evaluation is not None
    assert evaluation.champion == "rival"
    assert ends_promoted(cluster) == ("True", "Promoted")
    checkpoints = CheckpointIndex(Checkpoint.model_validate(m) for m in cluster.of("Checkpoint").values())
    assert checkpoints.champion_name("ticket-routing") == CHECKPOINT


def waiting_for_promotion() -> MemoryCluster:
    """A run that passed its gates, in whose line a Checkpoint made later is the champion meanwhile."""
    cluster = judged(promotion={"mode": "Manual"})
    job = cluster.objects["FineTuneJob", JOB]
    job["spec"]["promotion"] = {"mode": "ByGates"}
    job["status"]["conditions"] = [c for c in job["status"]["conditions"] if c["type"] != "Ready"]
    cluster.add(record("rival", "9", "2030-01-02T04:00:00Z", creationTimestamp="2030-01-02T03:59:00Z"))
    return cluster


def test_an_approval_does_not_stand_in_the_way_of_a_promotion_that_the_gates_grant() -> None:
    cluster = waiting_for_promotion()
    approve(cluster)
    assert ends(cluster) == ("Promoted", "True/Promoted")


def test_a_rejection_that_is_taken_back_after_the_run_has_ended_leaves_the_promotion_to_a_person() -> None:
    cluster = waiting_for_promotion()
    approve(cluster, "Rejected")
    assert ends(cluster) == ("Rejected", "False/Rejected")
    del cluster.objects["Checkpoint", CHECKPOINT]["spec"]["approval"]
    cluster.add(record("newest", "8", "2030-01-02T05:00:00Z"))
    cluster.settle()
    assert ends_promoted(cluster) == ("False", "NotPromoted")


def ends_promoted(cluster: MemoryCluster) -> tuple[str, str]:
    condition = cluster.condition("Checkpoint", CHECKPOINT, "Promoted")
    assert condition is not None
    return condition["status"], condition["reason"]


def test_approving_something_older_than_the_champion_points_to_a_pin() -> None:
    cluster = judged(promotion={"mode": "Manual"})
    cluster.add(record("rival", "9", "2030-01-02T04:00:00Z", creationTimestamp="2030-01-02T03:59:00Z"))
    approve(cluster)
    condition = cluster.condition("Checkpoint", CHECKPOINT, "Promoted")
    assert condition is not None
    assert (condition["status"], condition["reason"]) == ("False", "NotPromoted")
    assert "pin it in an InferenceDeployment" in condition["message"]


RESTORED = [
    # Names, in the order of their restore; when they were recorded first; which of them is the champion then.
    pytest.param(
        ("newer", "older"), ("2029-03-01T00:00:00.000+00:00", "2029-02-01T00:00:00.000+00:00"), "newer"
    ),
    pytest.param(
        ("older", "newer"), ("2029-02-01T00:00:00.000+00:00", "2029-03-01T00:00:00.000+00:00"), "newer"
    ),
]


@pytest.mark.parametrize(("names", "recorded", "expected"), RESTORED, ids=["newer first", "older first"])
def test_after_a_restore_without_status_the_record_that_was_made_last_is_the_champion(
    names: tuple[str, str], recorded: tuple[str, str], expected: str
) -> None:
    cluster = MemoryCluster()
    for second, (name, at) in enumerate(zip(names, recorded, strict=True)):
        manifest = record(
            name,
            str(second),
            creationTimestamp=f"2030-01-02T03:00:0{second}Z",
            annotations={"finetune.dev/recorded-at": at},
        )
        manifest["spec"]["approval"] = {"state": "Approved"}
        cluster.add(manifest)
        cluster.settle()
    index = CheckpointIndex(Checkpoint.model_validate(m) for m in cluster.of("Checkpoint").values())
    assert index.champion_name("ticket-routing") == expected


@pytest.mark.parametrize("written", ["2031-01-01T00:00:00+00:00", "2029-01-01T00:00:00", "yesterday", ""])
def test_a_time_of_recording_that_cannot_be_true_is_not_believed(written: str) -> None:
    created = {"creationTimestamp": "2030-01-02T03:00:00Z"}
    odd = record("odd", "1", annotations={"finetune.dev/recorded-at": written}, **created)
    later = record("later", "2", creationTimestamp="2030-01-02T03:00:01Z")
    earlier = record("earlier", "3", creationTimestamp="2030-01-02T02:59:59Z")
    checkpoint, after, before = map(Checkpoint.model_validate, (odd, later, earlier))
    assert is_older(checkpoint, after)
    assert is_older(before, checkpoint)


@pytest.mark.parametrize("withdrawn", ["rejected", "deleted", "being deleted"])
def test_an_approved_checkpoint_takes_the_line_when_the_younger_champion_is_withdrawn(withdrawn: str) -> None:
    cluster = judged(promotion={"mode": "Manual"})
    cluster.add(record("rival", "9", "2030-01-02T04:00:00Z", creationTimestamp="2030-01-02T03:59:00Z"))
    approve(cluster)
    assert ends_promoted(cluster) == ("False", "NotPromoted")
    rival = cluster.objects["Checkpoint", "rival"]
    match withdrawn:
        case "rejected":
            rival["spec"]["approval"] = {"state": "Rejected"}
        case "deleted":
            cluster.remove("Checkpoint", "rival")
        case _:
            rival["metadata"]["deletionTimestamp"] = "2030-01-02T05:00:00Z"
    cluster.settle()
    assert ends_promoted(cluster) == ("True", "Promoted")


def test_a_rejection_that_is_taken_back_gives_the_checkpoint_its_place_again() -> None:
    cluster = judged()
    cluster.add(record("before", "9", "2030-01-02T02:00:00Z"))
    champions = []
    for state in ("Rejected", None, "Rejected", "Approved"):
        approval = {"state": state} if state else None
        cluster.change("Checkpoint", CHECKPOINT, approval=approval)
        cluster.settle()
        index = CheckpointIndex(Checkpoint.model_validate(m) for m in cluster.of("Checkpoint").values())
        champions.append(index.champion_name("ticket-routing"))
    assert champions == ["before", CHECKPOINT, "before", CHECKPOINT]


def test_a_person_may_promote_what_missed_its_gates() -> None:
    cluster = judged(evaluation={"gates": [{"metric": "exact_match", "min": 0.99}]})
    approve(cluster)
    assert ends(cluster) == ("GateFailed", "True/Promoted")


def test_a_checkpoint_whose_run_is_gone_is_promoted_by_approval_only() -> None:
    cluster = judged(promotion={"mode": "Manual"})
    cluster.remove("FineTuneJob", JOB)
    cluster.settle()
    assert ends_promoted(cluster) == ("False", "NotPromoted")
    approve(cluster)
    assert ends_promoted(cluster) == ("True", "Promoted")


def test_a_promotion_is_newer_than_all_others_although_another_clock_was_ahead() -> None:
    cluster = judged(promotion={"mode": "Manual"})
    cluster.add(record("rival", "9", "2031-01-01T00:00:00Z", creationTimestamp="2029-01-01T00:00:00Z"))
    approve(cluster)
    index = CheckpointIndex(Checkpoint.model_validate(m) for m in cluster.of("Checkpoint").values())
    assert index.champion_name("ticket-routing") == CHECKPOINT


def test_the_champion_is_the_newest_promoted_that_nobody_rejected() -> None:
    older = Checkpoint.model_validate(record("older", "1", "2030-01-01T00:00:00Z"))
    newer = Checkpoint.model_validate(record("newer", "2", "2030-01-02T00:00:00Z"))
    waiting = Checkpoint.model_validate(record("waiting", "3"))
    index = CheckpointIndex((newer, older, waiting))
    assert index.champion("ticket-routing") == newer
    withdrawn = record("newer", "2", "2030-01-02T00:00:00Z")
    withdrawn["spec"]["approval"] = {"state": "Rejected"}
    index.put(Checkpoint.model_validate(withdrawn))
    assert index.champion("ticket-routing") == older
    assert index.champion("another-line") is None


def test_a_checkpoint_names_the_endpoints_that_serve_it() -> None:
    cluster = judged()
    for name in ("desk", "mail", "chat"):
        cluster.add(
            {
                "apiVersion": "finetune.dev/v1alpha1",
                "kind": "InferenceDeployment",
                "metadata": {"name": name},
                "spec": {
                    "baseModel": {"uri": "pvc://models/gemma"},
                    "models": [{"name": "router", "follow": {"modelLine": "ticket-routing"}}],
                },
                "status": {"models": [{"name": "router", "checkpoint": CHECKPOINT}]},
            }
        )
    cluster.reconcile("Checkpoint", CHECKPOINT)
    status = Checkpoint.model_validate(cluster.objects["Checkpoint", CHECKPOINT]).status
    assert status.in_use_by == ("chat", "desk", "mail")
    assert status.display is not None
    assert status.display.in_use == "chat, desk +1"
