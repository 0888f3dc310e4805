# SPDX-License-Identifier: Apache-2.0
"""What an Evaluation wakes, which records it needs, and which endpoints ask for its scores."""

from copy import deepcopy
from datetime import timedelta
from typing import Any

import pytest

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.evaluation_resource import Evaluation
from finetune_operator.api.inference_deployment import InferenceDeployment
from finetune_operator.metrics.changes import record_transition
from finetune_operator.metrics.process_metrics import OperatorMetrics
from finetune_operator.plan import Key, Manifest
from finetune_operator.reconcile.inferencedeployment.revision.targets import resolve
from finetune_operator.reconcile.model_lines import CheckpointIndex
from finetune_operator.reconcile.scheduling import related
from finetune_trainer.contract.results import Score
from tests.unit.operator.evaluations import (
    EVALUATION,
    QUESTIONS,
    QUESTIONS_VERSION,
    SECOND,
    SECOND_WEIGHTS,
    entries,
    evaluated_cluster,
    evaluating,
    evaluation,
    measured,
    second_checkpoint,
    trained_cluster,
)
from tests.unit.operator.memorycluster import MemoryCluster
from tests.unit.operator.runobjects import BASE, CHECKPOINT, WEIGHTS, digest
from tests.unit.operator.runsteps import delete_run

OVER_LIVE = {"metric": "exact_match", "minGain": 0, "over": "Live"}


def names(cluster: MemoryCluster, kind: str, name: str) -> set[Key]:
    return set(related(kind, None, cluster.objects[kind, name], cluster.reader()))


def key(kind: str, name: str) -> Key:
    return Key(kind, "team", name)


def test_what_an_evaluation_waits_for_leads_to_it_and_its_scores_to_their_checkpoint() -> None:
    waiting = trained_cluster()
    waiting.add(evaluation(checkpoints=["later"]))
    waiting.settle()
    own = key("Evaluation", EVALUATION)
    later: Manifest = {**waiting.objects["Checkpoint", CHECKPOINT]}
    later["metadata"] = {**later["metadata"], "name": "later"}
    assert own in related("Checkpoint", None, later, waiting.reader())
    assert own in names(waiting, "Dataset", QUESTIONS)
    assert own in names(waiting, "ComputeProfile", "cpu")

    cluster = evaluated_cluster()
    assert names(cluster, "Evaluation", EVALUATION) == {key("Checkpoint", CHECKPOINT)}
    assert own not in names(cluster, "Checkpoint", CHECKPOINT)
    assert own not in names(cluster, "Dataset", QUESTIONS)
    assert own not in names(cluster, "ComputeProfile", "cpu")


@pytest.mark.parametrize(
    ("kind", "name"), [("Checkpoint", CHECKPOINT), ("DatasetVersion", QUESTIONS_VERSION)]
)
def test_what_an_evaluation_measures_stays_until_it_ends(kind: str, name: str) -> None:
    cluster = evaluating()
    cluster.change(kind, name, deletionPolicy="Delete")
    cluster.settle()
    cluster.delete(kind, name)
    cluster.settle()
    assert cluster.states(kind, name)["Reconciling"] == "InUse"
    assert f"Evaluation {EVALUATION}" in (cluster.condition(kind, name, "Reconciling") or {})["message"]

    before = deepcopy(cluster.objects["Evaluation", EVALUATION])
    cluster.succeed("evaluate", measured())
    cluster.reconcile("Evaluation", EVALUATION)

    ended = cluster.objects["Evaluation", EVALUATION]
    assert cluster.states("Evaluation", EVALUATION)["Ready"] == "Succeeded"
    assert key(kind, name) in related("Evaluation", before, ended, cluster.reader())
    cluster.reconcile(kind, name)
    assert cluster.has_stage_job("cleanup")


def test_a_run_that_is_deleted_with_its_records_leaves_what_an_evaluation_measures() -> None:
    cluster = evaluating(run={"deletionPolicy": "Delete", "promotion": {"mode": "Manual"}})
    delete_run(cluster)

    assert ("Checkpoint", CHECKPOINT) in cluster.objects
    assert "deletionTimestamp" not in cluster.objects["Checkpoint", CHECKPOINT]["metadata"]
    assert any(f"in use by Evaluation {EVALUATION}" in event.message for event in cluster.events)


def test_an_evaluation_that_waits_delays_no_deletion() -> None:
    cluster = trained_cluster()
    cluster.add(evaluation(checkpoints=[CHECKPOINT, "later"]))
    cluster.settle()
    cluster.change("Checkpoint", CHECKPOINT, deletionPolicy="Delete")
    cluster.settle()
    cluster.delete("Checkpoint", CHECKPOINT)
    cluster.settle()

    assert cluster.states("Checkpoint", CHECKPOINT).get("Reconciling") != "InUse"


def test_checkpoints_of_different_base_models_are_measured_one_after_the_other() -> None:
    cluster = trained_cluster()
    second_checkpoint(cluster)
    cluster.add(evaluation(checkpoints=[CHECKPOINT, SECOND]))
    cluster.settle()
    cluster.start("evaluate")
    cluster.succeed("evaluate", measured(), after=20)
    cluster.settle()

    config = cluster.config("evaluate")
    assert (config.checkpoint, config.base_model, config.checkpoint_type) == (
        SECOND_WEIGHTS,
        digest("9"),
        "Full",
    )
    assert cluster.objects["Evaluation", EVALUATION]["status"]["display"]["checkpoints"] == "1/2"
    assert len(entries(cluster)) == 2

    cluster.start("evaluate", after=5)
    cluster.succeed("evaluate", measured(0.5, number=1, checkpoint=SECOND_WEIGHTS), after=10)
    cluster.settle()

    status = cluster.objects["Evaluation", EVALUATION]["status"]
    assert cluster.states("Evaluation", EVALUATION)["Stalled"] == "GateFailed"
    assert [each["verdict"] for each in status["evaluations"]] == ["Passed", "Failed"]
    assert status["stages"][0]["seconds"] == 30.0
    assert entries(cluster, SECOND)[0]["source"] == EVALUATION
    assert entries(cluster)[1]["verdict"] == "Passed"


def test_the_scores_of_the_run_stay_however_many_evaluations_follow() -> None:
    cluster = evaluated_cluster()
    for number in range(6):
        monthly(cluster, number)

    assert [each["source"] for each in entries(cluster)] == [
        "Run",
        "month-5",
        "month-4",
        "month-3",
        "month-2",
    ]
    writes = cluster.writes
    cluster.settle()
    assert cluster.writes == writes


def monthly(cluster: MemoryCluster, number: int) -> None:
    """Let an Evaluation of another month measure the Checkpoint."""
    cluster.now += timedelta(minutes=1)
    uid = f"e0000000-0000-4000-8000-00000000010{number}"
    cluster.add(evaluation(name=f"month-{number}", uid=uid))
    cluster.settle()
    cluster.succeed("evaluate", measured(uid=uid))
    cluster.settle()


def follower(*evaluations: str) -> Manifest:
    """An endpoint that requires scores of these Evaluations."""
    scores = [{"metric": "exact_match", "min": 0.5, "evaluation": each} for each in evaluations]
    follow = {"modelLine": "ticket-routing", "minScores": scores}
    spec = {"baseModel": {"uri": "pvc://models/gemma"}, "models": [{"name": "m", "follow": follow}]}
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "InferenceDeployment",
        "metadata": {"name": "router"},
        "spec": spec,
    }


def test_scores_that_an_endpoint_requires_stay_when_newer_ones_follow() -> None:
    cluster = evaluated_cluster()
    cluster.add(follower(EVALUATION))
    for number in range(6):
        monthly(cluster, number)

    sources = [each["source"] for each in entries(cluster)]
    assert sources == ["Run", "month-5", "month-4", "month-3", EVALUATION]
    assert cluster.condition("Checkpoint", CHECKPOINT, "ScoresRecorded") is None


def test_a_list_full_of_required_scores_says_what_it_omits() -> None:
    cluster = evaluated_cluster()
    for number in range(3):
        monthly(cluster, number)
    cluster.add(follower(EVALUATION, "month-0", "month-1", "month-2"))
    monthly(cluster, 3)

    assert [each["source"] for each in entries(cluster)][1:] == ["month-2", "month-1", "month-0", EVALUATION]
    condition = cluster.condition("Checkpoint", CHECKPOINT, "ScoresRecorded")
    assert condition is not None
    assert (condition["status"], condition["reason"]) == ("False", "ListFull")
    assert "scores of month-3:" in condition["message"]

    cluster.delete("InferenceDeployment", "router")
    monthly(cluster, 4)
    assert cluster.condition("Checkpoint", CHECKPOINT, "ScoresRecorded") is None
    assert [each["source"] for each in entries(cluster)][1:] == ["month-4", "month-3", "month-2", "month-1"]


def test_a_pass_of_a_checkpoint_reads_no_evaluation_whose_scores_it_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = evaluated_cluster()
    for number in range(6):
        monthly(cluster, number)
    read: list[str] = []
    validate = Evaluation.model_validate

    def noted(manifest: Manifest) -> Evaluation:
        read.append(manifest["metadata"]["name"])
        return validate(manifest)

    monkeypatch.setattr(Evaluation, "model_validate", noted)
    cluster.reconcile("Checkpoint", CHECKPOINT)

    assert not read


def followed(checkpoint: Manifest, *min_scores: dict[str, Any]) -> str:
    """Why an endpoint does not take the Checkpoint; empty if it does."""
    endpoint = InferenceDeployment.model_validate(
        {
            "metadata": {"name": "router"},
            "spec": {
                "baseModel": {"uri": "pvc://models/gemma"},
                "models": [
                    {"name": "m", "follow": {"modelLine": "ticket-routing", "minScores": list(min_scores)}}
                ],
            },
        }
    )
    (model,) = resolve(endpoint, CheckpointIndex([Checkpoint.model_validate(checkpoint)])).models
    return model.problem


def test_an_endpoint_asks_for_the_scores_of_the_run_unless_it_names_an_evaluation() -> None:
    checkpoint = evaluated_cluster(tuned=0.5).objects["Checkpoint", CHECKPOINT]
    wanted: dict[str, Any] = {"metric": "exact_match", "min": 0.8}

    assert followed(checkpoint, wanted) == ""
    assert followed(checkpoint, {**wanted, "evaluation": EVALUATION}).endswith(
        f"exact_match by Evaluation {EVALUATION} is 0.500, below 0.800"
    )
    assert followed(checkpoint, {**wanted, "min": 0.4, "evaluation": EVALUATION}) == ""
    assert followed(checkpoint, {**wanted, "evaluation": "another"}).endswith(
        "exact_match was not measured by Evaluation another"
    )


def test_device_time_of_an_evaluation_is_counted() -> None:
    metrics = OperatorMetrics()
    usage = {"name": "evaluate", "profile": "a100", "deviceSeconds": 30.0}
    before: Manifest = {"kind": "Evaluation", "metadata": {"name": "e", "namespace": "team"}, "status": {}}
    record_transition(metrics, before, {**before, "status": {"usage": usage}})

    labels = {"namespace": "team", "profile": "a100"}
    assert metrics.registry.get_sample_value("finetune_device_seconds_total", labels) == 30.0


def test_a_challenger_is_compared_with_the_champion_of_its_line() -> None:
    cluster = trained_cluster()
    second_checkpoint(cluster, model="ticket-routing")
    cluster.add(evaluation(checkpoints=[SECOND], gates=[OVER_LIVE], compare=[]))
    cluster.settle()

    config = cluster.config("evaluate")
    assert config.subjects == ("Tuned", "Live")
    assert (config.live.name, config.live.digest, config.live.base_model) == (CHECKPOINT, WEIGHTS, BASE)

    scores = (
        Score(metric="exact_match", subject="Tuned", value=0.9, rows=24),
        Score(metric="exact_match", subject="Live", value=0.8, rows=24),
    )
    result = measured(checkpoint=SECOND_WEIGHTS, scores=scores, live=WEIGHTS)
    cluster.succeed("evaluate", result)
    cluster.settle()

    (entry,) = entries(cluster, SECOND)
    assert (entry["live"], entry["verdict"]) == (CHECKPOINT, "Passed")
    assert cluster.states("Checkpoint", CHECKPOINT) == {"Promoted": "Promoted"}


def test_a_gate_over_live_is_not_applicable_to_a_line_without_a_champion() -> None:
    cluster = trained_cluster()
    second_checkpoint(cluster)
    gate = {"metric": "exact_match", "min": 0.5, "minGain": 0, "over": "Live"}
    cluster.add(evaluation(checkpoints=[SECOND], gates=[gate], compare=[]))
    cluster.settle()
    assert cluster.config("evaluate").subjects == ("Tuned",)

    cluster.succeed("evaluate", measured(checkpoint=SECOND_WEIGHTS))
    cluster.settle()

    assert entries(cluster, SECOND)[0]["gates"][0]["verdict"] == "NotApplicable"
    assert cluster.states("Evaluation", EVALUATION)["Ready"] == "Succeeded"


def test_a_champion_that_is_deleted_after_it_was_measured_still_decides() -> None:
    cluster = trained_cluster()
    second_checkpoint(cluster, model="ticket-routing")
    cluster.add(evaluation(checkpoints=[SECOND], gates=[OVER_LIVE], compare=[]))
    cluster.settle()
    cluster.delete("Checkpoint", CHECKPOINT)
    scores = (
        Score(metric="exact_match", subject="Tuned", value=0.7, rows=24),
        Score(metric="exact_match", subject="Live", value=0.8, rows=24),
    )
    cluster.succeed("evaluate", measured(checkpoint=SECOND_WEIGHTS, scores=scores, live=WEIGHTS))
    cluster.settle()

    (entry,) = entries(cluster, SECOND)
    assert (entry["verdict"], entry["gates"][0]["verdict"]) == ("Failed", "Failed")
    assert cluster.states("Evaluation", EVALUATION)["Stalled"] == "GateFailed"


def test_a_checkpoint_whose_deletion_waits_for_the_evaluation_is_measured() -> None:
    cluster = trained_cluster()
    second_checkpoint(cluster)
    cluster.change("Checkpoint", SECOND, deletionPolicy="Delete")
    cluster.add(evaluation(checkpoints=[CHECKPOINT, SECOND]))
    cluster.settle()
    cluster.delete("Checkpoint", SECOND)
    cluster.settle()
    assert cluster.states("Checkpoint", SECOND)["Reconciling"] == "InUse"
    cluster.succeed("evaluate", measured())
    cluster.settle()
    assert cluster.config("evaluate").checkpoint == SECOND_WEIGHTS

    cluster.succeed("evaluate", measured(number=1, checkpoint=SECOND_WEIGHTS))
    cluster.settle()

    assert cluster.states("Evaluation", EVALUATION)["Ready"] == "Succeeded"
    assert cluster.has_stage_job("cleanup")


def test_the_champion_is_not_compared_with_itself() -> None:
    cluster = trained_cluster()
    gate = {"metric": "exact_match", "min": 0.5, "minGain": 0, "over": "Live"}
    cluster.add(evaluation(gates=[gate], compare=[]))
    cluster.settle()
    assert cluster.config("evaluate").subjects == ("Tuned",)

    cluster.succeed("evaluate", measured())
    cluster.settle()

    assert entries(cluster)[1]["gates"][0]["verdict"] == "NotApplicable"
    assert cluster.states("Evaluation", EVALUATION)["Ready"] == "Succeeded"


def replace_weights(cluster: MemoryCluster, name: str, character: str) -> None:
    """Delete the Checkpoint and create another one of its name."""
    old = cluster.objects["Checkpoint", name]
    cluster.delete("Checkpoint", name)
    spec = {**old["spec"], "digest": digest(character)}
    cluster.add({**old, "metadata": {"name": name}, "spec": spec, "status": {}})
    cluster.settle()


def test_other_weights_of_the_same_name_are_not_measured() -> None:
    cluster = trained_cluster()
    second_checkpoint(cluster)
    cluster.add(evaluation(checkpoints=[SECOND, CHECKPOINT]))
    cluster.settle()
    replace_weights(cluster, CHECKPOINT, "6")
    cluster.succeed("evaluate", measured(checkpoint=SECOND_WEIGHTS))
    cluster.settle()

    assert cluster.states("Evaluation", EVALUATION) == {"Stalled": "CheckpointReplaced"}
    (failure,) = cluster.objects["Evaluation", EVALUATION]["status"]["unmeasured"]
    assert (failure["checkpoint"], failure["reason"]) == (CHECKPOINT, "CheckpointReplaced")
    assert len(entries(cluster, SECOND)) == 1


def test_scores_of_earlier_weights_are_not_those_of_a_checkpoint_of_the_same_name() -> None:
    cluster = evaluating()
    cluster.start("evaluate")
    replace_weights(cluster, CHECKPOINT, "6")
    cluster.succeed("evaluate", measured())
    cluster.settle()

    assert cluster.states("Evaluation", EVALUATION)["Ready"] == "Succeeded"
    assert [each["source"] for each in entries(cluster)] == ["Run"]


def comparing() -> MemoryCluster:
    """A cluster with an Evaluation whose pod measures the champion, and a deletion of that champion."""
    cluster = trained_cluster()
    second_checkpoint(cluster, model="ticket-routing")
    cluster.change("Checkpoint", CHECKPOINT, deletionPolicy="Delete")
    cluster.add(evaluation(checkpoints=[SECOND], gates=[OVER_LIVE], compare=[]))
    cluster.settle()
    cluster.start("evaluate")
    cluster.delete("Checkpoint", CHECKPOINT)
    cluster.settle()
    return cluster


def test_the_champion_that_an_evaluation_measures_stays_until_it_is_measured() -> None:
    cluster = comparing()
    assert cluster.states("Checkpoint", CHECKPOINT)["Reconciling"] == "InUse"
    assert cluster.config("evaluate").live.name == CHECKPOINT

    cluster.succeed("evaluate", measured(checkpoint=SECOND_WEIGHTS, live=WEIGHTS))
    cluster.settle()

    assert "live" not in cluster.objects["Evaluation", EVALUATION]["status"]
    assert cluster.has_stage_job("cleanup")


def test_a_suspended_evaluation_keeps_no_champion_and_continues_with_another() -> None:
    cluster = comparing()
    cluster.change("Evaluation", EVALUATION, suspend=True)
    cluster.settle()
    assert cluster.has_stage_job("cleanup")

    cluster.change("Evaluation", EVALUATION, suspend=False)
    cluster.settle()

    assert cluster.config("evaluate").live is None
