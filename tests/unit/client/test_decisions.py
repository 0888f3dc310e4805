# SPDX-License-Identifier: Apache-2.0
"""What decisions change, and what they say happens next."""

from typing import Any

import pytest

from finetune_client import decisions
from finetune_client.backend import Object
from finetune_client.decisions import SpecChange
from finetune_client.errors import OperationError, ProgramExit
from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.api.inference_deployment import InferenceDeployment
from tests.unit.client.decidedobjects import golden, run_after

HOURS = "2030-01-02T{:02}:00:00Z"


def checkpoint(name: str, hour: int, *, promoted: bool = False, **metadata: Any) -> Checkpoint:
    """A Checkpoint of the line `tickets`, recorded at this hour."""
    patch: Object = {
        "metadata": {"name": name, "creationTimestamp": HOURS.format(hour), **metadata},
        "status": {"promotedAt": HOURS.format(hour) if promoted else None},
    }
    return Checkpoint.model_validate(golden("endpoint", "Checkpoint/first", patch))


def endpoint(**patch: Any) -> Object:
    return golden("endpoint", "InferenceDeployment/desk", patch)


DESK = InferenceDeployment.model_validate(endpoint())
OLD, CHAMPION = checkpoint("old", 1, promoted=True), checkpoint("champion", 5, promoted=True)
FOLLOWERS = "Endpoints that follow tickets take the champion if it meets their minScores: desk."


def judge(state: Any, judged: Checkpoint, *others: Checkpoint) -> SpecChange:
    return decisions.judge(state, judged, "read 50 answers", (judged, *others), (DESK,))


def test_an_approval_of_a_newer_checkpoint_promotes_it_and_names_the_endpoints() -> None:
    change = judge("Approved", checkpoint("new", 6), CHAMPION)
    assert change.spec == {"approval": {"state": "Approved", "reason": "read 50 answers"}}
    assert change.done == "Checkpoint new is approved: read 50 answers"
    assert change.next == (
        "The operator promotes it within seconds: it becomes the champion of model line tickets.",
        FOLLOWERS,
    )
    assert change.follow == "kubectl -n team get checkpoint new --watch"


def test_an_approval_against_the_gates_says_what_it_overrides() -> None:
    verdict = run("run-misses-its-gates").status.evaluation
    assert verdict is not None
    new = checkpoint("new", 6)
    measured = verdict.model_copy(update={"source": "Run"})
    missed = new.model_copy(update={"status": new.status.model_copy(update={"evaluations": (measured,)})})
    assert judge("Approved", missed, CHAMPION).next[0] == (
        "It overrides the verdict of its run, which is Failed: exact_match 0.75 < 0.8; exact_match gain 0.25"
        " over Base (0.5 → 0.75) < 0.3"
    )


def test_an_approval_of_a_checkpoint_that_is_older_than_the_champion_does_not_promote_it() -> None:
    (sentence,) = judge("Approved", checkpoint("late", 4), CHAMPION).next
    assert sentence == (
        "It is not promoted: approved, but champion, which is newer, is the champion of tickets: to serve"
        " this one, pin it in an InferenceDeployment."
    )


def test_an_approval_promotes_nothing_of_a_run_that_never_promotes() -> None:
    never = checkpoint("new", 6, annotations={"finetune.dev/never-promoted": "true"})
    (sentence,) = judge("Approved", never, CHAMPION).next
    assert sentence.startswith("It is not promoted: promotion.mode of FineTuneJob run is Never")


def test_approving_the_champion_keeps_it_and_an_earlier_one_does_not_return() -> None:
    assert judge("Approved", CHAMPION, OLD).next == ("It is the champion of model line tickets.", FOLLOWERS)
    assert judge("Approved", OLD, CHAMPION).next == (
        "It was promoted before; champion, which was promoted later, stays the champion.",
    )


def test_rejecting_the_champion_names_the_one_before_and_the_pins_that_stay() -> None:
    pinning = InferenceDeployment.model_validate(
        endpoint(
            metadata={"name": "stable"},
            spec={"models": [{"name": "router", "pin": {"checkpoint": "champion"}}]},
        )
    )
    change = decisions.judge("Rejected", CHAMPION, "it invents teams", (OLD, CHAMPION), (DESK, pinning))
    assert change.spec == {"approval": {"state": "Rejected", "reason": "it invents teams"}}
    assert change.next == (
        "old is the champion of model line tickets.",
        FOLLOWERS,
        "Pins are not affected: stable keeps serving it.",
    )


def test_rejecting_the_only_champion_leaves_endpoints_serving_and_says_how_to_stop_them() -> None:
    (sentence,) = judge("Rejected", CHAMPION).next
    assert "has no champion now" in sentence
    assert "scale them to 0 replicas" in sentence


def test_rejecting_what_was_never_promoted_changes_no_endpoint() -> None:
    assert judge("Rejected", checkpoint("new", 6), CHAMPION).next == (
        "It was not promoted, and is not promoted while it is rejected.",
    )


def run(case: str = "run-shows-progress", **spec: Any) -> FineTuneJob:
    found = run_after(case)
    return FineTuneJob.model_validate({**found, "spec": found["spec"] | spec})


def test_a_decision_about_a_run_concerns_the_checkpoint_that_it_evaluated_or_its_only_one() -> None:
    missed = run("run-misses-its-gates")
    assert decisions.evaluated_checkpoint(missed) == "tickets-v1-0b5e7-40-cccccccc"
    unevaluated = missed.model_copy(update={"status": missed.status.model_copy(update={"evaluation": None})})
    assert decisions.evaluated_checkpoint(unevaluated) == "tickets-v1-0b5e7-40-cccccccc"
    (only,) = unevaluated.status.checkpoints
    several = {"evaluation": None, "checkpoints": (only, only.model_copy(update={"name": "another"}))}
    ambiguous = missed.model_copy(update={"status": missed.status.model_copy(update=several)})
    with pytest.raises(OperationError, match="2 Checkpoints") as refused:
        decisions.evaluated_checkpoint(ambiguous)
    assert refused.value.details == (only.name, "another")
    with pytest.raises(OperationError, match="no Checkpoint yet"):
        decisions.evaluated_checkpoint(run())


def test_a_running_run_is_cancelled_suspended_and_resumed() -> None:
    assert decisions.cancel(run()).spec == {"cancel": True}
    assert decisions.suspend(run()).spec == {"suspend": True}
    assert decisions.suspend(run()).next[-1] == "To continue it, run finetune resume."
    assert decisions.resume(run(suspend=True)).spec == {"suspend": False}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (decisions.cancel(run("run-ends-promoted")), "has already succeeded: there is nothing to cancel"),
        (decisions.cancel(run("run-misses-its-gates")), "has already failed: there is nothing to cancel"),
        (decisions.cancel(run(cancel=True)), "is being cancelled already"),
        (decisions.suspend(run("run-ends-promoted")), "has already succeeded: there is nothing to suspend"),
        (decisions.suspend(run(suspend=True)), "is suspended already"),
        (decisions.suspend(run(cancel=True)), "is being cancelled"),
        (decisions.resume(run()), "is not suspended"),
        (decisions.resume(run("run-misses-its-gates")), "has already failed"),
    ],
)
def test_a_decision_without_an_effect_changes_nothing_and_says_why(change: SpecChange, sentence: str) -> None:
    assert change.spec == {}
    assert change.done == f"FineTuneJob tickets-v1 {sentence}."


def test_a_cancelled_run_is_never_resumed() -> None:
    with pytest.raises(OperationError, match="never starts again"):
        decisions.resume(run(cancel=True, suspend=True))


NOW, BEFORE, STARTING = "desk-22222222", "desk-11111111", "desk-33333333"


def revision(name: str, state: str, checkpoint: str, result: str | None = "Passed") -> Object:
    models = [{"name": "router", "checkpoint": checkpoint, "digest": f"sha256:{checkpoint[0] * 64}"}]
    verdict = {} if result is None else {"verdict": {"result": result}}
    return {"name": name, "state": state, "models": models, **verdict}


def served(*revisions: Object, serves: str = "b", **spec: Any) -> Object:
    """The endpoint `desk`, whose revision NOW serves."""
    found = endpoint(spec=spec)
    found["status"] |= {
        "revision": NOW,
        "revisions": list(revisions),
        "models": [{"name": "router", "checkpoint": serves}],
    }
    return found


def roll_back(manifest: Object, to: str | None = None, deleted: str = "") -> SpecChange:
    parsed = InferenceDeployment.model_validate(manifest)
    return decisions.rollback(parsed, manifest, to, "ana: French", lambda name: name != deleted)


LIVE, RETIRED = revision(NOW, "Live", "b"), revision(BEFORE, "Retired", "a")


def test_without_a_rollout_the_checkpoints_of_the_revision_before_are_pinned() -> None:
    change = roll_back(served(LIVE, RETIRED))
    assert change.spec == {"models": [{"name": "router", "pin": {"checkpoint": "a"}}]}
    assert change.done == (
        f"InferenceDeployment desk returns to the Checkpoints of revision {BEFORE}: router = a (now b)."
    )
    assert change.next[-1] == (
        "It no longer follows model line tickets: new champions do not change it. To follow again: kubectl -n"
        ' team patch infd desk --type merge -p \'{"spec": {"models": [{"name": "router", "follow":'
        ' {"modelLine": "tickets", "requireApproval": false, "minScores": []}}]}}\''
    )


def test_revisions_that_never_served_or_served_the_same_are_skipped() -> None:
    skipped = (
        revision("desk-4", "RolledBack", "d", "Aborted"),
        revision("desk-5", "Retired", "e", None),
        revision("desk-6", "Retired", "b"),
    )
    assert roll_back(served(LIVE, *skipped, RETIRED)).spec["models"][0]["pin"] == {"checkpoint": "a"}
    with pytest.raises(OperationError, match="no earlier revision that served other Checkpoints") as refused:
        roll_back(served(LIVE, *skipped))
    assert refused.value.details[1] == "desk-4  RolledBack, Aborted  router = d"


def test_other_models_and_settings_of_an_endpoint_stay() -> None:
    models = [
        {"name": "router", "merge": True, "follow": {"modelLine": "tickets"}},
        {"name": "other", "follow": {"modelLine": "other"}},
    ]
    change = roll_back(served(LIVE, RETIRED, models=models))
    assert change.spec["models"] == [
        {"name": "router", "merge": True, "pin": {"checkpoint": "a"}},
        {"name": "other", "follow": {"modelLine": "other"}},
    ]


@pytest.mark.parametrize("state", ["RollingOut", "WaitingForCapacity", "Preview", "Canary", "Baking"])
@pytest.mark.parametrize("to", [None, NOW])
def test_a_rollout_is_aborted_by_a_decision(state: str, to: str | None) -> None:
    change = roll_back(served(revision(STARTING, state, "c", None), LIVE), to)
    assert change.spec == {
        "strategy": {
            "decision": {"revision": STARTING, "verdict": "Abort", "generation": 1, "reason": "ana: French"}
        }
    }
    assert change.next[0] == f"The requests return to {NOW}."


def test_an_abort_of_the_same_revision_again_raises_the_generation() -> None:
    before = {"revision": STARTING, "verdict": "Abort", "generation": 2}
    starting = revision(STARTING, "Canary", "c", None)
    change = roll_back(served(starting, LIVE, strategy={"decision": before}))
    assert change.spec["strategy"]["decision"]["generation"] == 3
    other = before | {"revision": "desk-0"}
    change = roll_back(served(starting, LIVE, strategy={"decision": other}))
    assert change.spec["strategy"]["decision"]["generation"] == 1


def test_during_a_rollout_an_earlier_revision_can_be_named_which_is_pinned() -> None:
    change = roll_back(served(revision(STARTING, "Canary", "c", None), LIVE, RETIRED), BEFORE)
    assert change.spec["models"][0]["pin"] == {"checkpoint": "a"}


def test_a_revision_that_is_unknown_or_rolls_out_cannot_be_returned_to() -> None:
    with pytest.raises(OperationError, match="lists no revision nope") as refused:
        roll_back(served(LIVE, RETIRED), "nope")
    assert refused.value.exit_code == ProgramExit.INVALID
    assert refused.value.details == (
        f"{NOW}  Live, Passed  router = b",
        f"{BEFORE}  Retired, Passed  router = a",
    )
    with pytest.raises(OperationError, match="is Canary: without --to"):
        roll_back(served(revision(STARTING, "Canary", "c", None), LIVE), STARTING)


def test_the_revision_that_serves_is_left_alone() -> None:
    change = roll_back(served(LIVE, RETIRED), NOW)
    assert change.spec == {}
    assert change.done == f"Revision {NOW} of desk serves already."


def test_a_checkpoint_that_was_deleted_or_weights_without_one_cannot_be_pinned() -> None:
    with pytest.raises(OperationError, match=r"Checkpoint a of revision .* was deleted"):
        roll_back(served(LIVE, RETIRED), deleted="a")
    by_uri = {
        "name": BEFORE,
        "state": "Retired",
        "models": [{"name": "router", "digest": "sha256:" + "a" * 64}],
    }
    with pytest.raises(OperationError, match="pinned by their uri"):
        roll_back(served(LIVE, by_uri), BEFORE)


def test_a_pause_is_named_because_the_earlier_checkpoints_wait_for_its_end() -> None:
    change = roll_back(served(LIVE, RETIRED, strategy={"paused": True}))
    assert any("spec.strategy.paused is true" in sentence for sentence in change.next)
