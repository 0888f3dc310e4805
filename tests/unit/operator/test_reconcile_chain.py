# SPDX-License-Identifier: Apache-2.0
"""The whole chain of a run, carried out in memory."""

from datetime import timedelta

import pytest

from finetune_operator.api.checkpoint import Checkpoint
from finetune_trainer.contract.results import DataStatistics, Progress
from tests.unit.operator.memorycluster import MemoryCluster
from tests.unit.operator.runobjects import (
    BASE,
    CHECKPOINT,
    DATASET,
    JOB,
    ROWS,
    VERSION,
    WEIGHTS,
    dataset,
    evaluated,
    finetunejob,
    preflighted,
    prepared,
    prerequisites,
    profile,
    trained,
)
from tests.unit.operator.runsteps import RESULTS, STAGES, reached, started


def test_a_run_goes_from_rows_to_a_promoted_checkpoint() -> None:
    cluster = reached("evaluate")
    cluster.succeed("evaluate", evaluated(), after=10)
    cluster.settle()
    assert cluster.states("FineTuneJob", JOB) == {
        "DatasetReady": "Succeeded",
        "Preflighted": "Succeeded",
        "Trained": "Succeeded",
        "Evaluated": "Succeeded",
        "Ready": "Promoted",
    }
    status = cluster.job(JOB).status
    assert status.resolved.dataset_version == VERSION
    assert status.resolved.base_model_digest == BASE
    assert [stage.name for stage in status.stages] == ["preflight", "train", "evaluate"]
    assert status.evaluation is not None
    assert status.evaluation.verdict == "Passed"
    assert status.evaluation.gates[0].message == "exact_match 0.95 ≥ 0.8"
    checkpoint = Checkpoint.model_validate(cluster.objects["Checkpoint", CHECKPOINT])
    assert checkpoint.status.promoted_at is not None
    assert checkpoint.spec.lineage.dataset_version == VERSION
    assert checkpoint.spec.uri == f"pvc://artifacts/checkpoints/{'c' * 64}"
    assert checkpoint.status.display is not None
    assert checkpoint.status.display.score == "exact_match 0.95 (base 0.00)"


def test_a_pass_without_a_change_writes_nothing() -> None:
    for stage in STAGES:
        cluster = reached(stage)
        before = cluster.writes
        cluster.settle()
        cluster.settle()
        assert cluster.writes == before, stage


def test_no_device_is_requested_before_data_and_base_model_are_checked() -> None:
    cluster = reached("preflight")
    assert not cluster.has_stage_job("train")
    assert cluster.config("preflight").dataset == ROWS


def test_each_stage_gets_what_the_earlier_ones_resolved() -> None:
    cluster = reached("evaluate")
    train, evaluate = cluster.config("train"), cluster.config("evaluate")
    assert (train.base_model, train.dataset) == (BASE, ROWS)
    assert train.hyperparameters.total_steps == 40
    assert (evaluate.checkpoint, evaluate.checkpoint_type) == (WEIGHTS, "Adapter")
    assert evaluate.subjects == ("Tuned", "Base")


@pytest.mark.parametrize("stage", STAGES)
def test_a_job_that_vanished_before_its_result_was_recorded_is_created_again(stage: str) -> None:
    cluster = reached(stage)
    name = cluster.stage_job(stage)["metadata"]["name"]
    cluster.remove("Job", name)
    cluster.settle()
    assert cluster.stage_job(stage)["metadata"]["name"] == name


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_with_a_recorded_result_never_runs_again(stage: str) -> None:
    cluster = reached(stage)
    cluster.succeed(stage, RESULTS[stage](), after=10)
    cluster.settle()
    cluster.remove("Job", cluster.stage_job(stage)["metadata"]["name"])
    cluster.settle()
    assert not cluster.has_stage_job(stage)


@pytest.mark.parametrize("stage", STAGES)
def test_a_crash_between_creating_and_writing_the_status_comes_to_the_same_end(stage: str) -> None:
    crashed, smooth = reached(stage), reached(stage)
    for cluster in (crashed, smooth):
        cluster.succeed(stage, RESULTS[stage](), after=10)
    crashed.carry_out("FineTuneJob", JOB, crashed.plan("FineTuneJob", JOB), crash_before_status=True)
    for cluster in (crashed, smooth):
        cluster.settle()
    assert crashed.objects["FineTuneJob", JOB]["status"] == smooth.objects["FineTuneJob", JOB]["status"]
    assert set(crashed.objects) == set(smooth.objects)


def test_a_finished_run_never_trains_again_whatever_is_deleted() -> None:
    cluster = reached("evaluate")
    cluster.succeed("evaluate", evaluated(), after=10)
    cluster.settle()
    for name in list(cluster.of("Job")):
        cluster.remove("Job", name)
    cluster.remove("Checkpoint", CHECKPOINT)
    cluster.remove("ComputeProfile", "cpu")
    before = cluster.writes
    cluster.settle()
    assert cluster.writes == before
    assert cluster.of("Job") == {}


def test_finished_jobs_go_after_their_time_and_records_stay() -> None:
    cluster = reached("evaluate")
    cluster.succeed("evaluate", evaluated(), after=10)
    cluster.settle()
    cluster.change("FineTuneJob", JOB, childrenTTLSeconds=600)
    plan = cluster.reconcile("FineTuneJob", JOB)
    assert plan.delete == ()
    assert plan.requeue_after == 600
    cluster.now += timedelta(seconds=600)
    cluster.reconcile("FineTuneJob", JOB)
    assert [job for job in cluster.of("Job") if job.startswith(JOB)] == []
    assert set(cluster.of("Checkpoint")) == {CHECKPOINT}
    assert cluster.job(JOB).status.observed_generation == 2


@pytest.mark.parametrize(
    ("untested", "said"), [(0, ""), (1, "1 answer in training rows has"), (3, "3 answers")]
)
def test_answers_without_a_test_row_are_reported_with_the_scores(untested: int, said: str) -> None:
    statistics = DataStatistics(source_rows=240, distinct_completions=7, untested_answers=untested)
    cluster = MemoryCluster(*prerequisites(), dataset(), finetunejob())
    cluster.settle()
    cluster.succeed("prepare", prepared(statistics=statistics), after=5)
    for stage in STAGES:
        cluster.settle()
        cluster.succeed(stage, RESULTS[stage](), after=10)
    cluster.settle()
    condition = cluster.condition("FineTuneJob", JOB, "Evaluated")
    assert condition is not None
    assert ("no row in the test split" in condition["message"]) == bool(untested)
    assert said in condition["message"]
    evaluation = cluster.job(JOB).status.evaluation
    assert evaluation is not None
    assert evaluation.untested_answers == (untested or None)


def test_a_failed_gate_promotes_nothing_and_keeps_what_succeeded_true() -> None:
    cluster = reached("evaluate")
    cluster.succeed("evaluate", evaluated(tuned=0.5), after=10)
    cluster.settle()
    states = cluster.states("FineTuneJob", JOB)
    assert states["Stalled"] == "GateFailed"
    assert (states["Trained"], states["Evaluated"]) == ("Succeeded", "Succeeded")
    assert "Ready" not in states
    promoted = cluster.condition("Checkpoint", CHECKPOINT, "Promoted")
    assert promoted is not None
    assert (promoted["status"], promoted["reason"]) == ("False", "GateFailed")
    assert "exact_match 0.5 < 0.8" in promoted["message"]


def test_a_run_without_status_whose_checkpoints_exist_is_restored_and_not_trained() -> None:
    cluster = reached("evaluate")
    for name in list(cluster.of("Job")):
        cluster.remove("Job", name)
    cluster.objects["FineTuneJob", JOB]["status"] = {"observedGeneration": -1}
    cluster.settle()
    assert cluster.states("FineTuneJob", JOB) == {"Trained": "Restored", "Ready": "Restored"}
    assert cluster.of("Job") == {}
    assert [checkpoint.name for checkpoint in cluster.job(JOB).status.checkpoints] == [CHECKPOINT]


def test_each_stage_notes_the_profile_that_it_ran_on() -> None:
    cluster = MemoryCluster(*prerequisites(), profile("l4", default=False), dataset())
    cluster.add(finetunejob(evaluation={"profile": "l4", "gates": [{"metric": "exact_match", "min": 0.8}]}))
    cluster.settle()
    for stage, result in (("prepare", prepared()), *((name, RESULTS[name]()) for name in STAGES)):
        cluster.start(stage)
        cluster.succeed(stage, result, after=10)
        cluster.settle()
    stages = {stage.name: stage.profile for stage in cluster.job(JOB).status.stages}
    assert stages == {"preflight": "cpu", "train": "cpu", "evaluate": "l4"}


def test_nothing_is_created_for_a_run_that_is_being_deleted() -> None:
    cluster = started()
    cluster.objects["FineTuneJob", JOB]["metadata"]["deletionTimestamp"] = "2030-01-02T04:00:00Z"
    for name in list(cluster.of("Job")):
        cluster.remove("Job", name)
    plan = cluster.plan("FineTuneJob", JOB)
    assert (plan.create, plan.delete, plan.status) == ((), (), None)


def test_the_version_is_frozen_at_the_start_although_the_dataset_changes() -> None:
    cluster = reached("train")
    cluster.change("Dataset", DATASET, split={"seed": 7})
    cluster.settle()
    cluster.succeed("train", trained(), after=10)
    cluster.settle()
    assert cluster.config("evaluate").dataset == ROWS


def test_a_profile_edited_during_the_run_changes_neither_image_nor_store() -> None:
    cluster = reached("train")
    other = {"uri": "pvc://other", "accessMode": "ReadWriteOnce"}
    cluster.change("ComputeProfile", "cpu", store=other, images={"trainer": "else/where:2"})
    cluster.succeed("train", trained(), after=10)
    cluster.settle()
    container = cluster.stage_job("evaluate")["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == "registry.example/trainer:1"
    assert cluster.config("evaluate").store.uri == "pvc://artifacts"
    resolved = cluster.job(JOB).status.resolved
    assert (resolved.store, resolved.profile_generation) == ("pvc://artifacts", 1)


def test_progress_shows_in_status_and_never_goes_back() -> None:
    cluster = reached("train")
    cluster.start("train")
    for step, expected in ((20, 20), (10, 20), (30, 30)):
        report = Progress(step=step, total_steps=40, loss=0.5, eta_seconds=80)
        cluster.report("train", report)
        cluster.settle()
        progress = cluster.job(JOB).status.progress
        assert progress is not None
        assert progress.step == expected
    display = cluster.job(JOB).status.display
    assert display is not None
    assert (display.progress, display.loss, display.eta) == ("train 75% (30/40)", "0.500", "1m20s")


def test_the_chain_completes_without_any_report() -> None:
    cluster = reached("evaluate")
    cluster.succeed("evaluate", evaluated(), after=10)
    cluster.settle()
    assert cluster.progress is None
    assert cluster.states("FineTuneJob", JOB)["Ready"] == "Promoted"
    progress = cluster.job(JOB).status.progress
    assert progress is not None
    assert (progress.stage, progress.percent) == ("evaluate", 100)


def test_a_recreated_run_of_the_same_name_gets_jobs_of_its_own() -> None:
    cluster = reached("train")
    old = cluster.stage_job("train")["metadata"]["name"]
    cluster.remove("FineTuneJob", JOB)
    again = finetunejob()
    again["metadata"]["uid"] = "ffffffff-0000-4000-8000-000000000002"
    cluster.add(again)
    cluster.settle()
    assert cluster.stage_job("preflight")["metadata"]["name"].startswith(f"{JOB}-preflight-")
    cluster.succeed("preflight", preflighted(run=again["metadata"]["uid"]), after=10)
    cluster.settle()
    assert cluster.stage_job("train")["metadata"]["name"] != old
    assert cluster.config("train").run == again["metadata"]["uid"]
