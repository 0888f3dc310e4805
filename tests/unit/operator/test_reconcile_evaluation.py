# SPDX-License-Identifier: Apache-2.0
"""An Evaluation from its spec to the scores on its Checkpoints."""

import json
from datetime import timedelta
from typing import Any

import pytest

from finetune_operator.api.evaluation import EvaluationSettings, Gate
from finetune_operator.api.evaluation_resource import (
    MAX_EVALUATED,
    EvaluationResourceSpec,
    EvaluationResourceStatus,
)
from finetune_operator.api.meta import Reserved
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.inputs.snapshot import RunProgress
from finetune_operator.reconcile.verdicts import condense, evaluation_status
from finetune_trainer.contract.evaluation import CheckFinding
from finetune_trainer.contract.own_metrics import CustomMetricSource, EvaluationTaskSource
from finetune_trainer.contract.results import EvaluateResult, Progress, Score, ScoreResult, StageResult
from tests.unit.operator.evaluations import (
    ASKED,
    EVALUATION,
    EVALUATION_UID,
    QUESTIONS,
    QUESTIONS_VERSION,
    SECOND,
    SECOND_WEIGHTS,
    entries,
    evaluated_cluster,
    evaluating,
    evaluation,
    measured,
    questions,
    second_checkpoint,
    trained_cluster,
)
from tests.unit.operator.memorycluster import MemoryCluster
from tests.unit.operator.runobjects import (
    BASE,
    CHECKPOINT,
    JOB,
    WEIGHTS,
    claim,
    digest,
    failed,
    prepared,
    profile,
)
from tests.unit.operator.runsteps import ended


def state(cluster: MemoryCluster, name: str = EVALUATION) -> dict[str, str]:
    return cluster.states("Evaluation", name)


def status(cluster: MemoryCluster, name: str = EVALUATION) -> Manifest:
    found: Manifest = cluster.objects["Evaluation", name]["status"]
    return found


def message(cluster: MemoryCluster, type_: str, name: str = EVALUATION) -> str:
    condition = cluster.condition("Evaluation", name, type_)
    assert condition is not None
    text: str = condition["message"]
    return text


def jobs(cluster: MemoryCluster, name: str = EVALUATION) -> list[str]:
    return [job for job in cluster.of("Job") if job.startswith(name)]


def test_a_checkpoint_is_measured_on_the_rows_of_another_dataset() -> None:
    cluster = evaluating(dataset={"ref": {"name": QUESTIONS}, "split": "validation"})

    config = cluster.config("evaluate")

    assert (config.owner.kind, config.owner.name) == ("Evaluation", EVALUATION)
    assert (config.dataset, config.split) == (ASKED, "validation")
    assert (config.checkpoint, config.base_model, config.checkpoint_type) == (WEIGHTS, BASE, "Adapter")
    assert config.subjects == ("Tuned", "Base")
    assert config.max_sequence_length == 128
    assert config.run == f"{EVALUATION_UID}-0"
    assert state(cluster) == {"Reconciling": "Queued"}
    assert status(cluster)["display"] == {"checkpoints": "0/1"}


def test_the_job_belongs_to_the_evaluation() -> None:
    metadata = evaluating().stage_job("evaluate")["metadata"]

    assert metadata["labels"]["finetune.dev/owner-kind"] == "Evaluation"
    assert [each["kind"] for each in metadata["ownerReferences"]] == ["Evaluation"]
    assert len(metadata["name"]) <= 63


def test_its_scores_are_on_the_checkpoint_behind_those_of_the_run() -> None:
    cluster = evaluated_cluster()

    of_run, asked = entries(cluster)

    assert of_run["source"] == "Run"
    assert of_run["datasetDigest"] == digest("d")
    assert (asked["source"], asked["datasetVersion"]) == (EVALUATION, QUESTIONS_VERSION)
    assert asked["datasetDigest"] == ASKED
    assert asked["scores"][0]["value"] == 0.9
    assert cluster.objects["Checkpoint", CHECKPOINT]["status"]["display"]["score"].startswith(
        "exact_match 0.95"
    )
    assert state(cluster) == {"Evaluated": "Succeeded", "Ready": "Succeeded"}
    assert status(cluster)["display"] == {"checkpoints": "1/1", "score": "exact_match 0.90 (base 0.10)"}
    assert status(cluster)["phase"] == "Succeeded"


def test_a_missed_gate_ends_the_evaluation_and_leaves_the_promotion_alone() -> None:
    cluster = evaluated_cluster(tuned=0.5)

    assert state(cluster) == {"Evaluated": "Succeeded", "Stalled": "GateFailed"}
    assert message(cluster, "Stalled") == f"{CHECKPOINT}: exact_match 0.5 < 0.8"
    assert entries(cluster)[1]["verdict"] == "Failed"
    assert cluster.states("Checkpoint", CHECKPOINT) == {"Promoted": "Promoted"}
    assert cluster.states("FineTuneJob", JOB)["Ready"] == "Promoted"


def test_a_deleted_evaluation_leaves_its_scores() -> None:
    cluster = evaluated_cluster()
    before = entries(cluster)

    cluster.delete("Evaluation", EVALUATION)
    cluster.settle()

    assert entries(cluster) == before
    assert not jobs(cluster)


def test_a_finished_evaluation_never_measures_again() -> None:
    cluster = evaluated_cluster(childrenTTLSeconds=60)
    cluster.now += timedelta(seconds=61)
    cluster.settle()
    assert not jobs(cluster)

    cluster.change("Evaluation", EVALUATION, suspend=True)
    cluster.settle()
    cluster.delete("Checkpoint", CHECKPOINT)
    cluster.settle()

    assert state(cluster) == {"Evaluated": "Succeeded", "Ready": "Succeeded"}
    assert status(cluster)["observedGeneration"] == 2


def test_its_device_time_is_counted_and_priced() -> None:
    cluster = trained_cluster()
    cluster.add(
        profile(
            "gpu",
            default=False,
            accelerator={"resource": "nvidia.com/gpu", "maxPerPod": 2},
            cost={"pricePerDeviceHour": 3.6, "currency": "EUR"},
        )
    )
    cluster.add(evaluation(profile="gpu", compute={"devices": 2}))
    cluster.settle()
    assert cluster.config("evaluate").accelerators == 2
    cluster.start("evaluate", after=5)
    cluster.succeed("evaluate", measured(), after=30)
    cluster.settle()

    assert status(cluster)["stages"][0] == {
        "name": "evaluate",
        "profile": "gpu",
        "queuedSeconds": 5.0,
        "seconds": 30.0,
        "queuedDeviceSeconds": 10.0,
        "deviceSeconds": 60.0,
    }
    assert status(cluster)["cost"] == {"deviceSeconds": 60.0, "amount": 0.06, "currency": "EUR"}
    assert "usage" not in status(cluster)


def test_only_a_pod_of_the_present_job_moves_the_progress() -> None:
    cluster = evaluating()
    cluster.start("evaluate")
    report = Progress(step=12, total_steps=48)
    cluster.progress = RunProgress("evaluate", report, "another pod")
    cluster.settle()
    assert status(cluster)["progress"].get("percent", 0) == 0

    cluster.report("evaluate", report)
    cluster.settle()

    assert status(cluster)["progress"]["percent"] == 25


def test_it_waits_for_a_checkpoint_and_a_dataset_that_git_applies_later() -> None:
    cluster = ended()
    checkpoint = cluster.objects.pop(("Checkpoint", CHECKPOINT))
    cluster.add(evaluation())
    cluster.settle()
    assert state(cluster) == {"Reconciling": "CheckpointNotFound"}

    cluster.objects["Checkpoint", CHECKPOINT] = checkpoint
    cluster.settle()
    assert state(cluster) == {"Reconciling": "DatasetNotFound"}

    cluster.add(questions())
    cluster.settle()
    assert state(cluster) == {"Reconciling": "WaitingForDataset"}
    assert (
        not cluster.has_stage_job("evaluate")
        or EVALUATION not in cluster.stage_job("evaluate")["metadata"]["name"]
    )


def test_an_empty_split_is_refused_before_a_device_is_requested() -> None:
    cluster = ended()
    cluster.add(questions())
    cluster.add(evaluation())
    cluster.settle()
    cluster.succeed("prepare", prepared("d0000000-0000-4000-8000-000000000002-1", test_rows=0, dataset=ASKED))
    cluster.settle()

    assert state(cluster) == {"Stalled": "InvalidSpec"}
    assert "train (192 rows)" in message(cluster, "Stalled")


def test_rows_in_another_store_are_named() -> None:
    cluster = ended()
    cluster.add(claim("elsewhere", "ReadWriteMany"))
    asked = questions()
    asked["spec"]["store"] = {"uri": "pvc://elsewhere"}
    cluster.add(asked)
    cluster.add(evaluation())
    cluster.settle()
    cluster.succeed("prepare", prepared("d0000000-0000-4000-8000-000000000002-1", dataset=ASKED))
    cluster.settle()

    assert state(cluster) == {"Reconciling": "DatasetNotInStore"}
    assert f"Checkpoint {CHECKPOINT} is in pvc://artifacts" in message(cluster, "Reconciling")


def test_a_suspended_evaluation_uses_no_devices_and_continues() -> None:
    cluster = evaluating()
    cluster.start("evaluate")
    cluster.change("Evaluation", EVALUATION, suspend=True)
    cluster.settle()
    assert not jobs(cluster)
    assert state(cluster) == {"Suspended": "Suspended"}

    cluster.change("Evaluation", EVALUATION, suspend=False)
    cluster.settle()
    cluster.succeed("evaluate", measured())
    cluster.settle()

    assert state(cluster)["Ready"] == "Succeeded"


def test_a_failed_job_names_the_checkpoint() -> None:
    cluster = evaluating()
    result = failed("evaluate", "OutOfMemory", "row 7 alone needs too much", run=f"{EVALUATION_UID}-0")
    cluster.end("evaluate", result.to_json(), exit_code=1)
    cluster.settle()

    assert state(cluster) == {"Stalled": "OutOfMemory"}
    assert message(cluster, "Stalled") == f"Checkpoint {CHECKPOINT}: row 7 alone needs too much"
    assert len(entries(cluster)) == 1


def test_a_checkpoint_that_cannot_be_measured_keeps_no_other_from_being_measured() -> None:
    cluster = trained_cluster()
    second_checkpoint(cluster)
    cluster.add(evaluation(checkpoints=[CHECKPOINT, SECOND]))
    cluster.settle()
    result = failed("evaluate", "OutOfMemory", "row 7 alone needs too much", run=f"{EVALUATION_UID}-0")
    cluster.end("evaluate", result.to_json(), exit_code=1)
    cluster.settle()
    assert cluster.config("evaluate").checkpoint == SECOND_WEIGHTS
    assert state(cluster)["Reconciling"] in {"Queued", "Evaluating"}

    cluster.succeed("evaluate", measured(0.5, number=1, checkpoint=SECOND_WEIGHTS))
    cluster.settle()

    assert state(cluster) == {"Stalled": "OutOfMemory"}
    assert message(cluster, "Stalled") == (
        f"Checkpoint {CHECKPOINT}: row 7 alone needs too much. {SECOND}: exact_match 0.5 < 0.8"
    )
    assert status(cluster)["display"]["checkpoints"] == "1/2"
    assert [each["checkpoint"] for each in status(cluster)["unmeasured"]] == [CHECKPOINT]
    assert [each["source"] for each in entries(cluster, SECOND)] == [EVALUATION]
    assert len(status(cluster)["stages"]) == 1


def test_a_result_of_a_pod_that_is_gone_is_read_from_the_store() -> None:
    cluster = evaluating()
    cluster.end_job("evaluate", "Complete")
    cluster.now += timedelta(seconds=11)
    cluster.settle()
    assert state(cluster) == {"Reconciling": "Collecting"}
    config = cluster.config("collect")
    assert (config.of, config.run, config.owner.kind) == ("evaluate", f"{EVALUATION_UID}-0", "Evaluation")
    assert "finetune.dev/devices" not in cluster.stage_job("collect")["metadata"]["labels"]

    cluster.end("collect", measured().to_json())
    cluster.settle()

    assert state(cluster)["Ready"] == "Succeeded"


def test_a_store_that_does_not_answer_is_tried_again() -> None:
    cluster = evaluating()
    result = failed("evaluate", "StoreUnavailable", "the store does not answer", run=f"{EVALUATION_UID}-0")
    cluster.end("evaluate", result.to_json(), exit_code=12)
    cluster.settle()
    assert state(cluster) == {"Reconciling": "StoreUnavailable"}
    assert status(cluster)["retry"]["failures"] == 1

    cluster.now += timedelta(seconds=70)
    cluster.settle()
    assert state(cluster) == {"Reconciling": "CheckingStore"}


def test_a_checkpoint_that_is_deleted_meanwhile_does_not_lose_the_result() -> None:
    cluster = evaluating()
    cluster.start("evaluate")
    cluster.delete("Checkpoint", CHECKPOINT)
    cluster.settle()
    assert state(cluster) == {"Reconciling": "Evaluating"}

    cluster.succeed("evaluate", measured())
    cluster.settle()

    assert state(cluster)["Ready"] == "Succeeded"


def test_an_evaluation_that_lost_its_status_takes_its_scores_from_the_checkpoint() -> None:
    cluster = evaluated_cluster(childrenTTLSeconds=0)
    before = entries(cluster)
    cluster.delete("Evaluation", EVALUATION)
    cluster.add(evaluation(childrenTTLSeconds=0, uid="e0000000-0000-4000-8000-000000000009"))
    cluster.settle()

    assert state(cluster) == {"Evaluated": "Succeeded", "Ready": "Succeeded"}
    assert entries(cluster) == before
    assert not jobs(cluster)


@pytest.mark.parametrize("spec", [{"metrics": ["loss"]}, {"gates": None}])
def test_another_spec_of_the_same_name_measures_again(spec: dict[str, Any]) -> None:
    cluster = evaluated_cluster()
    cluster.delete("Evaluation", EVALUATION)
    uid = "e0000000-0000-4000-8000-000000000009"
    cluster.add(evaluation(uid=uid, **spec))
    cluster.settle()
    assert state(cluster) == {"Reconciling": "Queued"}

    cluster.now += timedelta(minutes=1)
    cluster.succeed("evaluate", measured(0.7, uid=uid))
    cluster.settle()

    assert [each["source"] for each in entries(cluster)] == ["Run", EVALUATION]
    assert entries(cluster)[1]["scores"][0]["value"] == 0.7


def test_a_reserved_field_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EvaluationResourceSpec.model_fields["slice_by"], "metadata", [Reserved()])
    cluster = trained_cluster()
    cluster.add(evaluation(sliceBy="language"))
    cluster.settle()

    assert state(cluster) == {"Stalled": "NotImplemented"}


def test_the_largest_results_fit_into_a_status() -> None:
    names = [f"metric_{number:02}_{'x' * 20}" for number in range(20)]
    gates = tuple(
        Gate(metric=name, min=0.12345, min_gain=0.12345, over="Base", confidence=0.95) for name in names[:16]
    )
    result = EvaluateResult(
        checkpoint=WEIGHTS,
        split="validation",
        scores=tuple(
            Score(metric=name, subject=subject, value=1 / 3, rows=123456, low=1 / 7, high=6 / 7)
            for name in names
            for subject in ("Tuned", "Base", "Prompted", "Live")
        ),
        findings=tuple(CheckFinding(check="Judge", veto=False, message="x" * 512) for _ in range(8)),
    )
    settings = EvaluationSettings(gates=gates)
    entry = condense(
        evaluation_status(
            settings,
            result,
            checkpoint="c" * 63,
            source="e" * 40,
            dataset_version="f" * 63,
            dataset_digest=ASKED,
            champion="d" * 63,
            live="d" * 63,
        )
    )

    assert [gate.metric for gate in entry.gates] == names[:8]
    assert {score.metric for score in entry.scores} == set(names[:8])
    assert [score.subject for score in entry.scores].count("Tuned") == 8
    entry = entry.model_copy(update={"settings_hash": "0" * 16})
    whole = EvaluationResourceStatus(evaluations=(entry,) * MAX_EVALUATED)
    assert len(json.dumps(whole.to_dict())) < 31 * 1024


def test_a_job_whose_status_write_was_lost_keeps_its_profile_and_trainer() -> None:
    cluster = evaluating()
    resolved = status(cluster)["resolved"]
    cluster.objects["Evaluation", EVALUATION]["status"] = {"observedGeneration": -1}
    cluster.settle()

    assert status(cluster)["resolved"] == resolved


TASK = {"name": "science", "configMapRef": {"name": "ability", "key": "science.yaml"}}
METRIC = {"name": "polite", "configMapRef": {"name": "politeness", "key": "metric.py"}}
SOURCES: dict[str, Any] = {
    "tasks": (EvaluationTaskSource(name="science", digest=digest("7"), rows=400),),
    "custom_metrics": (CustomMetricSource(name="polite", digest=digest("9")),),
}


def with_own_metrics(**settings: Any) -> MemoryCluster:
    """An Evaluation of two Checkpoints with a task and a custom metric, whose first Job exists."""
    cluster = trained_cluster()
    cluster.change("ComputeProfile", "cpu", **{"allow": {"customCode": True}, **settings})
    second_checkpoint(cluster)
    gates = [{"metric": "custom/polite", "min": 0.5}]
    names = [CHECKPOINT, SECOND]
    cluster.add(evaluation(checkpoints=names, tasks=[TASK], customMetrics=[METRIC], gates=gates))
    cluster.settle()
    return cluster


def scored(tuned: float, number: int) -> StageResult:
    score = Score(metric="custom/polite", subject="Tuned", value=tuned, rows=24)
    run = f"{EVALUATION_UID}-{number}"
    return StageResult(stage="score", run=run, outcome="Succeeded", score=ScoreResult(scores=(score,)))


def test_tasks_and_custom_metrics_are_measured_by_the_stages_of_a_run() -> None:
    cluster = with_own_metrics()
    first = cluster.config("evaluate")
    assert [task.digest for task in first.tasks] == [None]
    cluster.start("evaluate")
    cluster.succeed("evaluate", measured(**SOURCES), after=30)
    cluster.settle()

    config = cluster.config("score")
    assert (config.metrics[0].digest, config.split) == (digest("9"), "test")
    pod = cluster.stage_job("score")["spec"]["template"]["spec"]
    folders = {each["mountPath"]: each["subPath"] for each in pod["containers"][0]["volumeMounts"][:2]}
    assert folders == {
        "/mnt/predictions": f"runs/{EVALUATION_UID}-0/evaluate",
        "/mnt/dataset": f"datasets/{'a' * 64}",
    }
    (policy,) = cluster.of("NetworkPolicy").values()
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= (
        cluster.stage_job("score")["spec"]["template"]["metadata"]["labels"].items()
    )
    cluster.succeed("score", scored(0.9, 0), after=10)
    cluster.settle()

    second = cluster.config("evaluate")
    assert second.checkpoint == SECOND_WEIGHTS
    assert [task.digest for task in second.tasks] == [digest("7")], "all are measured with the same files"
    cluster.start("evaluate")
    cluster.succeed("evaluate", measured(0.5, 1, checkpoint=SECOND_WEIGHTS, **SOURCES), after=20)
    cluster.settle()
    cluster.succeed("score", scored(0.4, 1), after=10)
    cluster.settle()

    assert state(cluster) == {"Evaluated": "Succeeded", "Stalled": "GateFailed"}
    assert message(cluster, "Stalled") == f"{SECOND}: custom/polite 0.4 < 0.5"
    (entry,) = entries(cluster, SECOND)
    assert {score["metric"] for score in entry["scores"]} == {"exact_match", "custom/polite"}
    stages = {each["name"]: each["seconds"] for each in status(cluster)["stages"]}
    assert stages == {"evaluate": 50, "score": 20}
    assert status(cluster)["resolved"]["tasks"][0]["rows"] == 400


def test_a_metric_that_fails_loses_the_time_of_its_checkpoint_only() -> None:
    cluster = with_own_metrics()
    cluster.start("evaluate")
    cluster.succeed("evaluate", measured(**SOURCES), after=30)
    cluster.settle()
    cluster.succeed("score", scored(0.9, 0), after=10)
    cluster.settle()
    cluster.start("evaluate")
    cluster.succeed("evaluate", measured(0.5, 1, checkpoint=SECOND_WEIGHTS, **SOURCES), after=20)
    cluster.settle()
    broken = failed("score", "CustomMetricFailed", "row 17: KeyError", run=f"{EVALUATION_UID}-1")
    cluster.end("score", broken.to_json(), exit_code=11, after=10)
    cluster.settle()

    assert state(cluster)["Stalled"] == "CustomMetricFailed"
    assert [each["checkpoint"] for each in status(cluster)["unmeasured"]] == [SECOND]
    (lost,) = status(cluster)["cost"]["lost"]
    assert lost["deviceSeconds"] == 20
    assert len(entries(cluster)) == 2


def test_custom_metrics_need_the_permission_of_the_profile() -> None:
    cluster = with_own_metrics(allow={"customCode": False})
    assert state(cluster) == {"Reconciling": "CustomCodeNotAllowed"}
    assert "does not allow spec.customMetrics" in message(cluster, "Reconciling")
    cluster.change("ComputeProfile", "cpu", allow={"customCode": True})
    cluster.settle()
    assert cluster.has_stage_job("evaluate")


def test_a_veto_of_a_check_fails_the_evaluation_and_leaves_the_promotion_alone() -> None:
    cluster = evaluating(gates=None, checks={"memorization": "Veto"})
    config = cluster.config("evaluate")
    assert config.checks.memorization == "Veto"
    assert config.training_dataset == digest("d")
    veto = CheckFinding(check="Memorization", veto=True, message="2 answers repeat secrets")
    cluster.succeed("evaluate", measured(findings=(veto,)), after=30)
    cluster.settle()

    assert state(cluster) == {"Evaluated": "Succeeded", "Stalled": "Vetoed"}
    assert cluster.states("Checkpoint", CHECKPOINT) == {"Promoted": "Promoted"}
