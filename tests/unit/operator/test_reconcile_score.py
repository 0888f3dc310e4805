# SPDX-License-Identifier: Apache-2.0
"""Metrics of the user: a Job that mounts what it reads, denies connections, and adds to the evaluation."""

from datetime import timedelta
from typing import Any

import pytest

from finetune_operator.manifests.volumes import Location
from finetune_operator.reconcile.features.custom_metrics import folder_volumes
from finetune_trainer.contract.configs import ScoreConfig
from finetune_trainer.contract.evaluation import GateEvidence
from finetune_trainer.contract.own_metrics import CustomMetricSource
from finetune_trainer.contract.references import ArtifactRef
from finetune_trainer.contract.results import Progress, Score, ScoreResult, StageResult
from finetune_trainer.store.base import key_of, run_key
from tests.unit.operator.memorycluster import MemoryCluster
from tests.unit.operator.runobjects import (
    JOB,
    JOB_UID,
    ROWS,
    claim,
    dataset,
    digest,
    evaluated,
    failed,
    finetunejob,
    preflighted,
    prepared,
    profile,
    trained,
)
from tests.unit.operator.test_reconcile_live import crown

SOURCE = digest("9")
METRIC = {"name": "polite", "configMapRef": {"name": "politeness", "key": "metric.py"}}


def run_of(**evaluation: Any) -> dict[str, Any]:
    return finetunejob(evaluation={"customMetrics": [METRIC], **evaluation})


def cluster_of(job: dict[str, Any], data: dict[str, Any] | None = None, **settings: Any) -> MemoryCluster:
    objects = (
        profile(**{"allow": {"customCode": True}, **settings}),
        claim("artifacts"),
        claim("models"),
        data or dataset(),
    )
    cluster = MemoryCluster(*objects, job)
    cluster.settle()
    return cluster


def to_score(
    cluster: MemoryCluster,
    gates: tuple[GateEvidence, ...] = (),
    live: str | None = None,
    group_by: str | None = None,
) -> None:
    """Let the stages before score succeed."""
    checked = preflighted()
    assert checked.preflight is not None
    sources = (CustomMetricSource(name="polite", digest=SOURCE),)
    checked = checked.model_copy(
        update={"preflight": checked.preflight.model_copy(update={"custom_metrics": sources})}
    )
    stages = (
        ("prepare", prepared(group_by=group_by)),
        ("preflight", checked),
        ("train", trained()),
        ("evaluate", evaluated(evidence=gates, live=live)),
    )
    for stage, result in stages:
        cluster.succeed(stage, result, after=10)
        cluster.settle()


def scored(tuned: float = 0.9, **result: Any) -> StageResult:
    values = (("Tuned", tuned), ("Base", 0.2))
    scores = tuple(
        Score(metric="custom/polite", subject=subject, value=value, rows=24)  # type: ignore[arg-type]
        for subject, value in values
    )
    return StageResult(
        stage="score", run=JOB_UID, outcome="Succeeded", score=ScoreResult(scores=scores, **result)
    )


def test_the_pod_mounts_what_it_reads_and_has_neither_token_nor_credentials() -> None:
    cluster = cluster_of(run_of())
    to_score(cluster)

    pod = cluster.stage_job("score")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    folders = {path: mount["subPath"] for path, mount in mounts.items() if "subPath" in mount}
    assert folders == {
        "/mnt/predictions": run_key(JOB_UID, "evaluate"),
        "/mnt/dataset": key_of(ArtifactRef(kind="datasets", digest=ROWS)),
    }
    assert all(mount["readOnly"] for path, mount in mounts.items() if path != "/tmp")
    assert set(mounts) == {*folders, "/tmp", "/mnt/custom-metrics/polite"}
    kinds = {kind for volume in pod["volumes"] for kind in volume if kind != "name"}
    assert kinds == {"persistentVolumeClaim", "emptyDir", "configMap"}
    assert pod["automountServiceAccountToken"] is False
    account = cluster.objects["ServiceAccount", pod["serviceAccountName"]]
    assert account["metadata"]["name"] == "finetune-isolated"
    other_pods = cluster.stage_job("train")["spec"]["template"]["spec"]
    assert other_pods["serviceAccountName"] == "finetune-runner"
    config = cluster.config("score")
    assert isinstance(config, ScoreConfig)
    assert config.report is None
    assert config.store.credentials is None
    assert config.metrics[0].digest == SOURCE


@pytest.mark.parametrize("column", ["customer", None])
def test_the_stage_is_given_the_column_of_its_rows(column: str | None) -> None:
    cluster = cluster_of(run_of(), dataset(split={"groupBy": column}) if column else None)
    to_score(cluster, group_by=column)

    assert cluster.config("score").group_by == column


def test_connections_are_denied_before_the_pod_exists() -> None:
    cluster = cluster_of(run_of())
    to_score(cluster)

    (policy,) = cluster.of("NetworkPolicy").values()
    labels = cluster.stage_job("score")["spec"]["template"]["metadata"]["labels"]
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert not {"ingress", "egress"} & set(policy["spec"])
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    created = [kind for kind, _ in cluster.objects if kind in {"NetworkPolicy", "Job"}]
    assert created.index("NetworkPolicy") < len(created) - 1


@pytest.mark.parametrize(("tuned", "verdict"), [(0.9, "Passed"), (0.4, "Failed")])
def test_a_gate_on_a_custom_metric_decides(tuned: float, verdict: str) -> None:
    gates = [{"metric": "custom/polite", "min": 0.5, "minGain": 0.1, "over": "Base"}]
    cluster = cluster_of(run_of(gates=gates))
    to_score(cluster)
    assert cluster.states("FineTuneJob", JOB)["Reconciling"] in {"Scoring", "Queued"}
    before = cluster.job(JOB).status.cost

    cluster.succeed("score", scored(tuned), after=10)
    cluster.settle()

    evaluation = cluster.job(JOB).status.evaluation
    assert evaluation is not None
    assert evaluation.verdict == verdict
    assert {score.metric for score in evaluation.scores} == {"exact_match", "loss", "custom/polite"}
    status = cluster.job(JOB).status
    assert [stage.name for stage in status.stages] == ["preflight", "train", "evaluate", "score"]
    assert status.cost == before, "the time of evaluate is counted once"
    assert status.resolved.custom_metrics is not None
    assert status.resolved.custom_metrics[0].digest == SOURCE


def test_the_last_report_of_evaluate_counts_no_time_again() -> None:
    cluster = cluster_of(run_of())
    to_score(cluster)
    cluster.report("evaluate", Progress(step=24, total_steps=24))
    before = cluster.job(JOB).status

    for _ in range(3):
        cluster.now += timedelta(seconds=10)
        cluster.settle()

    status = cluster.job(JOB).status
    assert status.cost == before.cost
    assert status.progress is not None
    assert status.progress.stage == "score"
    evaluated_stages = [stage for stage in status.stages if stage.name == "evaluate"]
    assert evaluated_stages == [stage for stage in before.stages if stage.name == "evaluate"]


def test_a_renewal_scores_again_and_continues_the_times_of_both_stages() -> None:
    gates = [{"metric": "exact_match", "minGain": 0, "over": "Live"}]
    cluster = cluster_of(run_of(gates=gates))
    crown(cluster, "1")
    to_score(cluster, live=digest("1"))
    cluster.start("score")
    crown(cluster, "2")
    cluster.succeed("score", scored(), after=10)
    cluster.settle()
    status = cluster.job(JOB).status
    assert status.live is not None
    assert status.live.checkpoint == "rival-2"
    first = {stage.name: stage.seconds for stage in status.stages}

    cluster.succeed("evaluate", evaluated(live=digest("2")), after=10)
    cluster.settle()
    away = failed("score", "StoreUnavailable", "the store does not answer")
    cluster.end("score", away.to_json(), exit_code=12, after=10)
    cluster.settle()
    assert cluster.job(JOB).status.retry is not None
    cluster.now += timedelta(seconds=70)
    cluster.settle()
    cluster.succeed("score", scored(), after=10)
    cluster.settle()

    status = cluster.job(JOB).status
    assert status.evaluation is not None
    assert status.retry is None
    assert {stage.name: stage.seconds for stage in status.stages} == {**first, "evaluate": 20, "score": 30}


def test_answers_are_generated_for_custom_metrics_that_another_stage_computes() -> None:
    gates = [{"metric": "custom/polite", "min": 0.5}]
    cluster = cluster_of(run_of(metrics=["loss"], gates=gates))
    to_score(cluster)

    assert cluster.config("evaluate").metrics == ("exact_match", "loss")
    assert cluster.config("preflight").custom_metrics[0].path == "/mnt/custom-metrics/polite/metric.py"


def test_a_result_that_is_gone_with_its_pod_is_computed_again() -> None:
    cluster = cluster_of(run_of())
    to_score(cluster)
    cluster.end("score", "", after=10)
    cluster.settle()
    name = cluster.stage_job("score")["metadata"]["name"]
    assert not cluster.has_stage_job("collect")

    assert cluster.states("FineTuneJob", JOB)["Reconciling"] in {"Queued", "Scoring"}
    assert cluster.stage_job("score")["metadata"]["name"] == name
    cluster.succeed("score", scored(), after=10)
    cluster.settle()

    assert cluster.job(JOB).status.evaluation is not None


def test_a_result_that_cannot_be_read_ends_the_run_instead_of_repeating_the_stage() -> None:
    cluster = cluster_of(run_of())
    to_score(cluster)
    cluster.end("score", "not a result", after=10)
    cluster.now += timedelta(minutes=1)
    cluster.settle()

    assert cluster.states("FineTuneJob", JOB)["Stalled"] == "ResultLost"


def test_a_profile_that_does_not_allow_custom_code_blocks_the_run_until_it_does() -> None:
    cluster = cluster_of(run_of(), allow={"customCode": False})

    condition = cluster.condition("FineTuneJob", JOB, "Reconciling")
    assert condition is not None
    assert condition["reason"] == "CustomCodeNotAllowed"
    assert "ComputeProfile cpu does not allow spec.evaluation.customMetrics" in condition["message"]
    assert not cluster.has_stage_job("preflight")
    cluster.change("ComputeProfile", "cpu", allow={"customCode": True})
    cluster.settle()
    assert cluster.states("FineTuneJob", JOB)["Reconciling"] != "CustomCodeNotAllowed"


def test_a_permission_that_is_withdrawn_refuses_a_new_job_and_keeps_a_result() -> None:
    cluster = cluster_of(run_of())
    to_score(cluster)
    del cluster.objects["Job", cluster.stage_job("score")["metadata"]["name"]]
    cluster.change("ComputeProfile", "cpu", allow={"customCode": False})
    cluster.settle()
    assert cluster.states("FineTuneJob", JOB)["Reconciling"] == "CustomCodeNotAllowed"
    assert not cluster.has_stage_job("score")

    cluster.change("ComputeProfile", "cpu", allow={"customCode": True})
    cluster.settle()
    cluster.change("ComputeProfile", "cpu", allow={"customCode": False})
    cluster.succeed("score", scored(), after=10)
    cluster.settle()

    assert cluster.states("FineTuneJob", JOB)["Ready"] == "NotPromoted"


def test_a_store_in_a_bucket_is_refused() -> None:
    job = run_of()
    job["spec"]["store"] = {"uri": "s3://bucket/artifacts"}
    cluster = cluster_of(job)

    assert cluster.states("FineTuneJob", JOB)["Stalled"] == "InvalidSpec"


def test_folders_of_a_store_in_a_subfolder_are_in_it() -> None:
    found = folder_volumes(Location("pvc", "artifacts", "team/a"), "uid", ROWS)

    assert found.mounts[0]["subPath"] == "team/a/runs/uid/evaluate"
