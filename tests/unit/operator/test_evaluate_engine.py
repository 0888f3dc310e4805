# SPDX-License-Identifier: Apache-2.0
"""Evaluate Jobs of a ComputeProfile with the engine VLLM: containers, config, fallback and status."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest

from finetune_operator.observe.admission import Admission
from finetune_operator.observe.device_usage import stage_usage
from finetune_operator.observe.job_problems import job_trouble
from finetune_operator.observe.pod_termination import find_failure
from finetune_operator.plan import Manifest
from finetune_trainer.contract.configs import AnswersConfig, PromptsConfig
from finetune_trainer.contract.evaluation import AnswerEngine, EngineVersion
from tests.unit.operator.evaluations import EVALUATION, EVALUATION_UID, evaluating, measured
from tests.unit.operator.memorycluster import MemoryCluster
from tests.unit.operator.runobjects import (
    JOB,
    dataset,
    digest,
    evaluated,
    finetunejob,
    prepared,
    prerequisites,
    profile,
    trained,
)
from tests.unit.operator.runsteps import RESULTS, reached
from tests.unit.operator.test_reconcile_live import crown

VLLM: Final[dict[str, Any]] = {
    "serving": {"engine": "VLLM"},
    "images": {"engine": "registry.example/vllm:1"},
    "accelerator": {"resource": "nvidia.com/gpu", "maxPerPod": 8},
}
OTHER_BASE: Final = {"baseModel": {"uri": "pvc://models/llama", "digest": digest("9")}}
NOW: Final = datetime(2030, 1, 2, 3, 10, tzinfo=UTC)


def cluster_of(*champions: dict[str, Any], on: dict[str, Any] | None = None, **spec: Any) -> MemoryCluster:
    """A run whose evaluation has started on a profile with the engine VLLM, with champions of its line."""
    spec.setdefault("evaluation", {"metrics": ["exact_match", "loss"]})
    cluster = reached("train", **spec)
    resolved = cluster.objects["FineTuneJob", JOB]["status"]["resolved"]
    resolved["lora"] |= spec.get("method", {}).get("lora", {})
    cluster.change("ComputeProfile", "cpu", **(VLLM | (on or {})))
    for number, lineage in enumerate(champions, 1):
        crown(cluster, str(number), **{"adapter": {"r": 4}, **lineage})
    cluster.succeed("train", trained(), after=10)
    cluster.settle()
    return cluster


def pod_of(cluster: MemoryCluster) -> Manifest:
    pod: Manifest = cluster.stage_job("evaluate")["spec"]["template"]["spec"]
    return pod


def engine_of(cluster: MemoryCluster) -> AnswerEngine | None:
    engine: AnswerEngine | None = cluster.config("evaluate").answer_engine
    return engine


def answers_of(cluster: MemoryCluster) -> AnswersConfig:
    _, container = pod_of(cluster)["initContainers"]
    return AnswersConfig.model_validate_json(container["env"][0]["value"])


def evaluated_with_engine(**compute: Any) -> MemoryCluster:
    """A cluster in which the first Job of an Evaluation exists, on a profile with the engine VLLM."""
    cluster = evaluating(profile="served", compute=compute)
    cpu = cluster.objects["ComputeProfile", "cpu"]
    cluster.add({**cpu, "metadata": {"name": "served"}, "spec": cpu["spec"] | VLLM})
    cluster.settle()
    return cluster


def test_the_engine_runs_before_the_trainer_with_all_devices() -> None:
    cluster = cluster_of()
    pod = pod_of(cluster)
    prompts, answers = pod["initContainers"]
    (trainer,) = pod["containers"]

    assert [each["name"] for each in (prompts, answers, trainer)] == ["prompts", "answers", "trainer"]
    assert (prompts["image"], answers["image"]) == (trainer["image"], "registry.example/vllm:1")
    limits = [each["resources"]["limits"].get("nvidia.com/gpu") for each in (prompts, answers, trainer)]
    assert limits == [None, "1", "1"]
    config = PromptsConfig.model_validate_json(prompts["env"][0]["value"])
    assert config.evaluate.digest == cluster.config("evaluate").digest
    assert answers["command"] == ["python3", "-m", "finetune_trainer.evaluate.answering"]
    assert {each["name"]: each["value"] for each in answers["env"]}["PYTHONPATH"] == "/mnt/answers/python"


def test_the_engine_reads_the_store_and_has_no_credentials() -> None:
    _, answers = pod_of(cluster_of())["initContainers"]

    assert answers["volumeMounts"] == [
        {"name": "store", "mountPath": "/mnt/store", "readOnly": True},
        {"name": "scratch", "mountPath": "/tmp"},
        {"name": "answers", "mountPath": "/mnt/answers"},
    ]


def test_the_engine_has_the_resources_of_serving() -> None:
    given = {"cpu": "8", "memory": "64Gi", "ephemeralStorage": "100Gi"}
    _, answers = pod_of(cluster_of(on={"pods": [{"stages": ["serve"], "resources": given}]}))[
        "initContainers"
    ]

    assert answers["resources"] == {
        "requests": {"cpu": "8", "memory": "64Gi", "ephemeral-storage": "100Gi"},
        "limits": {"memory": "64Gi", "ephemeral-storage": "100Gi", "nvidia.com/gpu": "1"},
    }


def test_a_signal_to_the_engine_does_not_count() -> None:
    rules = cluster_of().stage_job("evaluate")["spec"]["podFailurePolicy"]["rules"]

    ignored = [rule["onExitCodes"] for rule in rules if rule["action"] == "Ignore" and "onExitCodes" in rule]
    assert [(each["containerName"], each["values"]) for each in ignored] == [
        ("trainer", [20, 21]),
        ("prompts", [20, 143]),
        ("answers", [20, 143]),
    ]


def test_one_server_has_the_base_model_and_its_adapters() -> None:
    evaluation = {"compare": ["Base", "Prompted", "Live"], "metrics": ["exact_match"]}
    (server,) = answers_of(cluster_of({}, evaluation=evaluation)).servers

    assert server.models == {"Tuned": "tuned", "Base": "base", "Prompted": "base", "Live": "live"}
    assert server.command == (
        *("vllm", "serve", "/mnt/answers/models/base", "--served-model-name=base", "--enable-lora"),
        *("--max-loras=2", "--max-cpu-loras=2", "--max-lora-rank=16", "--lora-modules"),
        *("tuned=/mnt/answers/models/tuned", "live=/mnt/answers/models/live"),
        *("--generation-config=vllm", "--max-model-len=auto", "--max-num-seqs=256"),
        *("--host=127.0.0.1", "--port=8000"),
    )


def test_another_base_model_has_a_server_of_its_own() -> None:
    evaluation = {"compare": ["Base", "Live"], "metrics": ["exact_match"]}
    first, second = answers_of(cluster_of(OTHER_BASE, evaluation=evaluation)).servers

    assert (first.models, second.models) == ({"Tuned": "tuned", "Base": "base"}, {"Live": "live"})
    assert second.command[2] == "/mnt/answers/models/live-base"
    assert "live=/mnt/answers/models/live" in second.command


def test_a_whole_model_has_a_server_of_its_own() -> None:
    cluster = cluster_of(
        method={"type": "Full"}, evaluation={"compare": ["Base"], "metrics": ["exact_match"]}
    )
    first, second = answers_of(cluster).servers

    assert (first.models, second.models) == ({"Tuned": "tuned"}, {"Base": "base"})
    assert first.command[2:4] == ("/mnt/answers/models/tuned", "--served-model-name=tuned")
    assert "--enable-lora" not in (*first.command, *second.command)


def test_several_devices_share_a_model() -> None:
    cluster = evaluated_with_engine(devices=2)
    (server,) = answers_of(cluster).servers
    _, answers = pod_of(cluster)["initContainers"]

    assert "--tensor-parallel-size=2" in server.command
    assert {"name": "shared-memory", "mountPath": "/dev/shm"} in answers["volumeMounts"]


@pytest.mark.parametrize(
    ("champions", "on", "spec", "message"),
    [
        ((), {}, {"method": {"lora": {"dora": True}}}, "the evaluated Checkpoint was trained with DoRA"),
        ((), {}, {"method": {"lora": {"r": 1024}}}, "has rank 1024, and VLLM serves ranks up to 512"),
        ((), {"images": {}}, {}, "the profile has no images.engine"),
    ],
)
def test_what_the_engine_cannot_load_is_answered_by_the_trainer_with_the_reason(
    champions: tuple[dict[str, Any], ...], on: dict[str, Any], spec: dict[str, Any], message: str
) -> None:
    cluster = cluster_of(*champions, on=on, **spec)

    engine = engine_of(cluster)
    assert engine is not None
    assert (engine.name, engine.image) == ("Transformers", None)
    assert message in engine.unsupported
    assert "initContainers" not in pod_of(cluster)


def test_an_evaluation_without_answers_needs_no_engine() -> None:
    cluster = cluster_of(evaluation={"metrics": ["loss"]})

    assert engine_of(cluster) is None
    assert "initContainers" not in pod_of(cluster)


def test_the_profile_of_the_evaluation_decides() -> None:
    run = finetunejob(evaluation={"profile": "served", "metrics": ["exact_match"]})
    cluster = MemoryCluster(*prerequisites(), profile("served", default=False, **VLLM), dataset(), run)
    cluster.settle()
    cluster.succeed("prepare", prepared(), after=5)
    for stage in ("preflight", "train"):
        cluster.settle()
        cluster.succeed(stage, RESULTS[stage](), after=10)
    cluster.settle()

    engine = engine_of(cluster)
    assert engine is not None
    assert (engine.name, engine.image, engine.max_lora_rank) == ("VLLM", "registry.example/vllm:1", 16)


def test_arguments_of_the_user_are_the_last_of_the_command() -> None:
    evaluation = {"metrics": ["exact_match"], "extraEngineArguments": ["--quantization=fp8"]}
    run = finetunejob(evaluation=evaluation)
    served = profile(**VLLM | {"serving": {"engine": "VLLM", "allowedEngineArguments": ["--quantization"]}})
    cluster = MemoryCluster(*prerequisites(), dataset(), run)
    cluster.change("ComputeProfile", "cpu", **served["spec"])
    cluster.settle()
    cluster.succeed("prepare", prepared(), after=5)
    for stage in ("preflight", "train"):
        cluster.settle()
        cluster.succeed(stage, RESULTS[stage](), after=10)
    cluster.settle()

    (server,) = answers_of(cluster).servers
    assert server.command[-2:] == ("--port=8000", "--quantization=fp8")


@pytest.mark.parametrize(
    ("on", "argument", "message"),
    [
        (VLLM, "--quantization=fp8", "is not in serving.allowedEngineArguments of ComputeProfile cpu"),
        (VLLM, "--port=1", "--port is set by the operator"),
        ({}, "--quantization=fp8", "needs the engine VLLM"),
    ],
)
def test_arguments_that_the_engine_may_not_get_block_a_run_before_it_starts(
    on: dict[str, Any], argument: str, message: str
) -> None:
    evaluation = {"metrics": ["exact_match"], "extraEngineArguments": [argument]}
    cluster = MemoryCluster(*prerequisites(), dataset(), finetunejob(evaluation=evaluation))
    cluster.change("ComputeProfile", "cpu", **on)
    cluster.settle()
    cluster.succeed("prepare", prepared(), after=5)
    cluster.settle()

    assert not cluster.has_stage_job("preflight")
    found = cluster.condition("FineTuneJob", JOB, "Reconciling")
    assert found is not None
    assert found["reason"] == "UnsupportedByEngine"
    assert f"spec.evaluation.extraEngineArguments{': ' if on else ' '}" in found["message"]
    assert message in found["message"]


def test_arguments_that_the_engine_may_not_get_block_an_evaluation() -> None:
    cluster = evaluating(extraEngineArguments=["--quantization=fp8"])

    found = cluster.condition("Evaluation", EVALUATION, "Reconciling")
    assert found is not None
    assert found["reason"] == "UnsupportedByEngine"


def test_the_status_names_the_engine_and_its_version() -> None:
    cluster = cluster_of()
    cluster.succeed("evaluate", evaluated(engine=EngineVersion(name="VLLM", version="0.32.0")), after=10)
    cluster.settle()

    evaluation = cluster.job(JOB).status.evaluation
    assert evaluation is not None
    assert evaluation.answer_engine == "VLLM 0.32.0"


def test_an_evaluation_of_a_checkpoint_has_the_engine_of_its_profile() -> None:
    cluster = evaluated_with_engine()
    assert [each["name"] for each in pod_of(cluster)["initContainers"]] == ["prompts", "answers"]

    engine = EngineVersion(name="VLLM", version="0.32.0")
    cluster.succeed("evaluate", measured(uid=EVALUATION_UID, engine=engine), after=10)
    cluster.settle()

    (entry,) = cluster.objects["Evaluation", EVALUATION]["status"]["evaluations"]
    assert entry["answerEngine"] == "VLLM 0.32.0"


def stamp(minutes: int) -> str:
    return (NOW + timedelta(minutes=minutes)).isoformat().replace("+00:00", "Z")


def answering(**state: Any) -> Manifest:
    """An evaluate pod whose container `answers` is in this state."""
    cluster = cluster_of()
    job = cluster.stage_job("evaluate")
    done = {"terminated": {"exitCode": 0, "startedAt": stamp(0), "finishedAt": stamp(1)}}
    return {
        "kind": "Pod",
        "metadata": {
            **job["spec"]["template"]["metadata"],
            "name": "p",
            "namespace": "team",
            "creationTimestamp": stamp(-1),
        },
        "spec": {**pod_of(cluster), "nodeName": "n"},
        "status": {
            "phase": "Failed" if "terminated" in state else "Pending",
            "conditions": [{"type": "PodScheduled", "status": "True", "lastTransitionTime": stamp(-1)}],
            "initContainerStatuses": [
                {"name": "prompts", "state": done},
                {"name": "answers", "state": state},
            ],
            "containerStatuses": [{"name": "trainer", "state": {"waiting": {"reason": "PodInitializing"}}}],
        },
    }


def evaluate_job() -> Manifest:
    return {**cluster_of().stage_job("evaluate"), "status": {"active": 1}}


def test_a_pod_whose_engine_answers_runs() -> None:
    pod = answering(running={"startedAt": stamp(1)})

    assert job_trouble(evaluate_job(), [pod], Admission(), NOW + timedelta(minutes=30)) is None


def test_a_container_that_starts_late_is_reported_from_the_end_of_the_one_before() -> None:
    pod = answering(waiting={"reason": "PodInitializing"})

    soon = job_trouble(evaluate_job(), [pod], Admission(), NOW + timedelta(minutes=2))
    late = job_trouble(evaluate_job(), [pod], Admission(), NOW + timedelta(minutes=4))
    assert soon is not None
    assert late is not None
    assert (soon.expected, late.expected) == (True, False)


def test_an_image_of_the_engine_that_cannot_be_pulled_is_named() -> None:
    pod = answering(waiting={"reason": "ErrImagePull", "message": "not found"})

    trouble = job_trouble(evaluate_job(), [pod], Admission(), NOW)
    assert trouble is not None
    assert "container answers of" in trouble.message
    assert "the platform adds" not in trouble.message


def test_an_engine_that_needs_more_memory_names_the_field() -> None:
    times = {"startedAt": stamp(1), "finishedAt": stamp(5)}
    pod = answering(terminated={"exitCode": 137, "reason": "OOMKilled", **times})

    trouble = find_failure(evaluate_job(), [pod])

    assert trouble.reason == "OutOfMemory"
    assert "raise resources.memory for serve in pods of ComputeProfile cpu" in trouble.message


def test_the_time_of_the_engine_is_time_of_the_stage() -> None:
    pod = answering(running={"startedAt": stamp(1)})
    job = {**evaluate_job()}
    job["metadata"] = {**job["metadata"], "creationTimestamp": stamp(-2)}

    usage = stage_usage(None, "evaluate", job, [pod], NOW + timedelta(minutes=10))

    assert usage is not None
    assert (usage.queued_seconds, usage.device_seconds) == (120, 600)


def test_a_profile_with_the_built_in_engine_changes_nothing() -> None:
    cluster = reached("evaluate")

    pod = pod_of(cluster)
    assert "initContainers" not in pod
    assert "answerEngine" not in json.loads(pod["containers"][0]["env"][0]["value"])
