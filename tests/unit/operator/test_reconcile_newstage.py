# SPDX-License-Identifier: Apache-2.0
"""A new stage is one row in `STAGES` and one builder: it starts, runs, is retried, collected and recorded.

The stage checks the best Checkpoint for unsafe answers between evaluation and promotion.
"""

import json
from datetime import timedelta
from typing import Any, Final, Literal, cast

import pytest

from finetune_operator.api.finetune_job_status import ProgressStatus
from finetune_operator.api.pod_resources import PodResources
from finetune_operator.api.stage_status import RetryStatus, StageStatus, StageUsage
from finetune_operator.manifests.trainer_config import StageInputs
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.finetunejob import reconciler
from finetune_operator.reconcile.finetunejob.run import RunPass
from finetune_operator.reconcile.finetunejob.stage import run_stage
from finetune_operator.reconcile.finetunejob.train import best_checkpoint
from finetune_operator.reconcile.passes import Failed, PassOutcome
from finetune_operator.stage_table import STAGES, StageRow
from finetune_operator.status.conditions import is_true
from finetune_operator.status.reasons import ConditionType, Reason
from finetune_trainer.contract.base import lenient_validator
from finetune_trainer.contract.configs import CollectConfig, StageConfig
from finetune_trainer.contract.environment import CONFIG_ENV
from finetune_trainer.contract.results import Progress, StageResult
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason, Stage
from tests.unit.operator.memorycluster import MemoryCluster
from tests.unit.operator.runobjects import JOB, JOB_UID, WEIGHTS, evaluated
from tests.unit.operator.runsteps import reached

SAFETY: Final = cast("Stage", "safety")
ROW: Final = StageRow(
    resources=PodResources(cpu="3", memory="5Gi"),
    running=cast("Reason", "CheckingSafety"),
    condition=cast("ConditionType", "Safe"),
    backoff_limit=1,
    queue="evaluate",
    devices="needed",
)


class SafetyConfig(StageConfig):
    """What the stage's pod is to do."""

    stage: Literal["safety"] = "safety"
    checkpoint: str


def check_safety(run: RunPass) -> PassOutcome | None:
    """The builder: the stage's config, and what the run records of its result."""
    if is_true(run.status.conditions, ROW.condition or ConditionType.READY):
        return None
    checkpoint = best_checkpoint(run)
    if isinstance(checkpoint, Failed):
        return checkpoint

    def config(inputs: StageInputs) -> SafetyConfig:
        return SafetyConfig(**inputs.shared, checkpoint=checkpoint.digest)

    result = run_stage(run, SAFETY, config)
    if not isinstance(result, StageResult):
        return result
    run.succeed(SAFETY, result.message)
    return None


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> MemoryCluster:
    """A run whose Checkpoint has passed its gates."""
    monkeypatch.setitem(STAGES, SAFETY, ROW)
    monkeypatch.setattr(reconciler, "STEPS", (*reconciler.STEPS, check_safety))
    for model in (ProgressStatus, StageStatus, StageUsage, RetryStatus, CollectConfig):
        # As if `Stage`, the vocabulary of the contract, had the new name.
        monkeypatch.setattr(model, "__pydantic_validator__", lenient_validator(model))
    cluster = reached("evaluate")
    cluster.succeed("evaluate", evaluated(), after=10)
    cluster.settle()
    return cluster


def result(outcome: str, message: str, reason: str = "") -> str:
    """The termination message of the stage's pod."""
    return json.dumps(
        {"contract": 2, "stage": SAFETY, "run": JOB_UID, "outcome": outcome, "reason": reason}
        | {"message": message}
    )


def container_of(job: Manifest) -> Any:
    return job["spec"]["template"]["spec"]["containers"][0]


def config_of(job: Manifest) -> Any:
    """The config that the Job's pod gets, as JSON."""
    environment = container_of(job)["env"]
    return json.loads(next(each["value"] for each in environment if each["name"] == CONFIG_ENV))


def status(cluster: MemoryCluster) -> Manifest:
    cluster.settle()
    found: Manifest = cluster.objects["FineTuneJob", JOB]["status"]
    return found


def reconciling(cluster: MemoryCluster) -> tuple[str, str]:
    cluster.settle()
    condition = cluster.condition("FineTuneJob", JOB, "Reconciling")
    assert condition is not None
    return condition["reason"], condition["message"]


def test_it_starts_with_what_its_row_and_its_builder_say(cluster: MemoryCluster) -> None:
    job = cluster.stage_job(SAFETY)
    assert job["spec"]["backoffLimit"] == 1
    assert container_of(job)["resources"]["requests"]["memory"] == "5Gi"
    assert job["metadata"]["labels"]["finetune.dev/devices"] == "1"
    config = config_of(job)
    assert (config["stage"], config["checkpoint"], config["run"]) == (SAFETY, WEIGHTS, JOB_UID)
    assert reconciling(cluster) == ("Queued", "the safety pod is being created")
    assert [event.message for event in cluster.events if event.reason == "StageStarted"][-1] == (
        f"safety started as Job {job['metadata']['name']}"
    )


def test_it_runs_and_its_progress_is_in_the_status(cluster: MemoryCluster) -> None:
    cluster.start(SAFETY)
    cluster.report(SAFETY, Progress(step=3, total_steps=12))
    assert reconciling(cluster) == ("CheckingSafety", "safety is running")
    assert status(cluster)["phase"] == "CheckingSafety"
    assert status(cluster)["display"]["progress"] == "safety 25% (3/12)"


def test_it_is_retried_on_its_devices_once_the_store_answers(cluster: MemoryCluster) -> None:
    first = cluster.stage_job(SAFETY)["metadata"]["uid"]
    away = result("Failed", "no space left", FailureReason.STORE_UNAVAILABLE)
    cluster.end(SAFETY, away, exit_code=ExitCode.STORE_UNAVAILABLE, after=5)
    assert reconciling(cluster)[0] == "StoreUnavailable"
    assert status(cluster)["retry"]["stage"] == SAFETY
    cluster.now += timedelta(seconds=90)
    assert reconciling(cluster)[0] == "CheckingStore"
    cluster.end("collect", result("Failed", "no result.json", FailureReason.ARTIFACT_NOT_FOUND), exit_code=10)
    cluster.settle()
    second = cluster.stage_job(SAFETY)["metadata"]["uid"]
    assert second != first


def recorded(cluster: MemoryCluster) -> Any:
    """What the status has of a run whose stage has succeeded."""
    after = status(cluster)
    assert cluster.states("FineTuneJob", JOB)["Safe"] == "Succeeded"
    assert cluster.states("FineTuneJob", JOB)["Ready"] == "Promoted", "the chain continues"
    return after["stages"][-1]


def test_its_result_and_its_times_are_recorded(cluster: MemoryCluster) -> None:
    cluster.end(SAFETY, result("Succeeded", "120 answers, none unsafe"), after=20)
    stage = recorded(cluster)
    assert (stage["name"], stage["seconds"], stage["deviceSeconds"]) == (SAFETY, 20.0, 20.0)
    condition = cluster.condition("FineTuneJob", JOB, "Safe")
    assert condition is not None
    assert condition["message"] == "120 answers, none unsafe"


def test_its_result_is_collected_from_the_store_if_its_pod_is_gone(cluster: MemoryCluster) -> None:
    cluster.end_job(SAFETY, "Complete")
    cluster.now += timedelta(seconds=11)
    reason, message = reconciling(cluster)
    assert reason == "Collecting"
    assert message.startswith("reading the result of safety from the store")
    assert config_of(cluster.stage_job("collect"))["of"] == SAFETY
    cluster.end("collect", result("Succeeded", "120 answers, none unsafe"))
    assert recorded(cluster)["name"] == SAFETY


def test_a_failure_that_is_not_retried_ends_the_run(cluster: MemoryCluster) -> None:
    cluster.end(SAFETY, result("Failed", "3 unsafe answers", "UnsafeAnswers"), exit_code=ExitCode.BAD_DATA)
    cluster.settle()
    assert cluster.states("FineTuneJob", JOB)["Stalled"] == "UnsafeAnswers"
    assert [each["name"] for each in status(cluster)["stages"]] == ["preflight", "train", "evaluate", SAFETY]
