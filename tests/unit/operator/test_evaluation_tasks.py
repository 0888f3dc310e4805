# SPDX-License-Identifier: Apache-2.0
"""Tasks of general ability: the pods that mount their files, and a gate on what the trainer measured."""

from typing import Any

import pytest

from finetune_trainer.contract.configs import EvaluateConfig, PreflightConfig
from finetune_trainer.contract.evaluation import GateEvidence
from finetune_trainer.contract.own_metrics import EvaluationTaskSource
from finetune_trainer.contract.results import Score, StageResult
from tests.unit.operator.memorycluster import MemoryCluster
from tests.unit.operator.runobjects import (
    JOB,
    claim,
    dataset,
    digest,
    evaluated,
    finetunejob,
    preflighted,
    prepared,
    profile,
    trained,
)

FILES = digest("7")
TASK = {"name": "science", "configMapRef": {"name": "ability", "key": "science.yaml"}, "numFewshot": 3}
GATE = {"metric": "task/science", "over": "Base", "minGain": -0.02, "confidence": 0.95}


def cluster_of(**evaluation: Any) -> MemoryCluster:
    job = finetunejob(evaluation={"tasks": [TASK], **evaluation})
    cluster = MemoryCluster(profile(), claim("artifacts"), claim("models"), dataset(), job)
    cluster.settle()
    return cluster


def checked() -> StageResult:
    result = preflighted()
    assert result.preflight is not None
    tasks = (EvaluationTaskSource(name="science", digest=FILES, rows=400),)
    return result.model_copy(update={"preflight": result.preflight.model_copy(update={"tasks": tasks})})


def measured(gain: float, low: float) -> StageResult:
    result = evaluated(
        evidence=(GateEvidence(gate=0, value=0.5, gain=gain, gain_low=low, gain_high=0.01, rows=400),)
    )
    assert result.evaluate is not None
    values = (("Tuned", 0.5), ("Base", 0.5 - gain))
    scores = tuple(
        Score(metric="task/science", subject=subject, value=value, rows=400)  # type: ignore[arg-type]
        for subject, value in values
    )
    found = result.evaluate.model_copy(update={"scores": (*result.evaluate.scores, *scores)})
    return result.model_copy(update={"evaluate": found})


def to_evaluate(cluster: MemoryCluster) -> None:
    for stage, result in (("prepare", prepared()), ("preflight", checked()), ("train", trained())):
        cluster.succeed(stage, result, after=10)
        cluster.settle()


def mounts(cluster: MemoryCluster, stage: str) -> dict[str, str]:
    """The ConfigMaps that the pod of a stage mounts, by path."""
    pod = cluster.stage_job(stage)["spec"]["template"]["spec"]
    volumes = {each["name"]: each["configMap"]["name"] for each in pod["volumes"] if "configMap" in each}
    (container,) = pod["containers"]
    return {
        mount["mountPath"]: volumes[mount["name"]]
        for mount in container["volumeMounts"]
        if mount["name"] in volumes
    }


def test_preflight_and_evaluate_mount_the_files_and_evaluate_knows_their_digest() -> None:
    cluster = cluster_of()
    to_evaluate(cluster)

    early, late = cluster.config("preflight"), cluster.config("evaluate")
    assert isinstance(early, PreflightConfig)
    assert isinstance(late, EvaluateConfig)
    for stage in ("preflight", "evaluate"):
        assert mounts(cluster, stage)["/mnt/tasks/science"] == "ability"
    assert "/mnt/tasks/science" not in mounts(cluster, "train")
    (before,), (task,) = early.tasks, late.tasks
    assert (before.folder, before.file, before.num_fewshot) == ("/mnt/tasks/science", "science.yaml", 3)
    assert before.digest is None
    assert task == before.model_copy(update={"digest": FILES})
    assert not set(late.metrics) & {"task/science"}
    resolved = cluster.job(JOB).status.resolved.tasks
    assert resolved is not None
    assert [(source.name, source.digest, source.rows) for source in resolved] == [("science", FILES, 400)]


@pytest.mark.parametrize(("low", "verdict"), [(-0.015, "Passed"), (-0.03, "Undecided")])
def test_not_worse_than_base_is_decided_by_the_lower_bound(low: float, verdict: str) -> None:
    cluster = cluster_of(gates=[GATE])
    to_evaluate(cluster)

    cluster.succeed("evaluate", measured(-0.005, low), after=10)
    cluster.settle()

    evaluation = cluster.job(JOB).status.evaluation
    assert evaluation is not None
    assert evaluation.verdict == verdict
    assert "task/science" in {score.metric for score in evaluation.scores}
