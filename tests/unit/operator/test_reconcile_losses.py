# SPDX-License-Identifier: Apache-2.0
"""Device time that led to no result, in the status of runs and Evaluations."""

from datetime import timedelta
from typing import Any

import pytest

from finetune_client.local.cluster import at
from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.api.stage_status import MAX_ENDED_PODS
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.finetunejob.run import RunPass
from finetune_operator.reconcile.passes import Failed
from finetune_operator.reconcile.stages.accounting import cause_of
from finetune_trainer.contract.results import RepeatedTraining
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason
from tests.unit.operator.evaluations import (
    EVALUATION,
    EVALUATION_UID,
    SECOND,
    evaluation,
    measured,
    second_checkpoint,
    trained_cluster,
)
from tests.unit.operator.memorycluster import MemoryCluster
from tests.unit.operator.nodesteps import both_run, ended, training
from tests.unit.operator.runobjects import CHECKPOINT, JOB, evaluated, failed, trained
from tests.unit.operator.runsteps import reached

PREEMPTED = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}


def scheduled(cluster: MemoryCluster) -> Manifest:
    return {"type": "PodScheduled", "status": "True", "lastTransitionTime": at(cluster.now)}


def status(cluster: MemoryCluster, kind: str = "FineTuneJob", name: str = JOB) -> Manifest:
    found: Manifest = cluster.objects[kind, name]["status"]
    return found


def lost(found: Manifest) -> dict[str, float]:
    return {each["cause"]: each["deviceSeconds"] for each in found.get("lost", ())}


def stage(cluster: MemoryCluster, stage: str, kind: str = "FineTuneJob", name: str = JOB) -> Manifest:
    return next(each for each in status(cluster, kind, name)["stages"] if each["name"] == stage)


def lose_pod(cluster: MemoryCluster, which: str, code: int, *conditions: Manifest) -> None:
    """Let a train pod run for ten seconds and end; the operator sees its end, and the pod is deleted."""
    started = at(cluster.now)
    cluster.pod("train", {"running": {"startedAt": started}}, which)
    cluster.settle()
    cluster.now += timedelta(seconds=10)
    times = {"startedAt": started, "finishedAt": at(cluster.now), "exitCode": code}
    pod = cluster.pod("train", {"terminated": times}, which, phase="Failed", conditions=[*conditions])
    cluster.settle()
    cluster.remove("Pod", pod["metadata"]["name"])


def test_a_pod_holds_its_devices_while_it_starts_and_the_cost_says_what_was_lost() -> None:
    cluster = reached("train", compute={"devices": 2})
    cluster.now += timedelta(seconds=50)
    conditions = [scheduled(cluster)]
    cluster.now += timedelta(seconds=8)
    started = at(cluster.now)
    cluster.now += timedelta(seconds=100)
    times = {"startedAt": started, "finishedAt": at(cluster.now), "exitCode": 0}
    cluster.pod("train", {"terminated": {**times, "message": trained().to_json()}}, conditions=conditions)
    cluster.end_job("train", "Complete")
    cluster.settle()

    train = stage(cluster, "train")
    assert (train["queuedDeviceSeconds"], train["startingDeviceSeconds"]) == (100, 16)
    assert (train["queuedSeconds"], train["deviceSeconds"]) == (58, 200)
    assert lost(train) == lost(status(cluster)["cost"]) == {"Waiting": 16}
    assert status(cluster)["cost"]["deviceSeconds"] == 200


@pytest.mark.parametrize(
    ("ends", "cause"),
    [
        ([(137, PREEMPTED)], "Preemption"),
        ([(ExitCode.PREEMPTED_SAVED,), (1, PREEMPTED)], "Preemption"),
        ([(1,)], "Failure"),
        ([(1,), (137, PREEMPTED)], "Unknown"),
        ([], "Unknown"),
    ],
    ids=["preempted", "preempted twice", "crashed", "both", "not observed"],
)
def test_repeated_training_is_lost_by_what_ended_the_pods_also_if_they_are_gone(
    ends: list[tuple[Any, ...]], cause: str
) -> None:
    cluster = reached("train")
    for number, (code, *conditions) in enumerate(ends):
        lose_pod(cluster, f"pod-{number}", code, *conditions)
    cluster.start("train")
    result = trained()
    assert result.train is not None
    repeated = result.train.model_copy(update={"restarts": 2, "lost_device_seconds": 7.5})
    cluster.succeed("train", result.model_copy(update={"train": repeated}), after=30)
    cluster.settle()

    assert lost(stage(cluster, "train")) == {cause: 7.5}
    assert stage(cluster, "train")["deviceSeconds"] == 10 * len(ends) + 30
    assert status(cluster)["training"]["lostDeviceSeconds"] == 7.5


@pytest.mark.parametrize(("resource", "devices"), [("cpu", 2), ("nvidia.com/gpu", 1)])
def test_a_process_that_uses_several_cores_loses_the_time_of_all_of_them(resource: str, devices: int) -> None:
    cluster = reached("train", compute={"devices": 2})
    cluster.change("ComputeProfile", "cpu", accelerator={"resource": resource, "maxPerPod": 4})
    lose_pod(cluster, "first", 1)
    before = unix(cluster, 5)
    cluster.start("train", after=10)
    result = trained()
    assert result.train is not None
    repeat = RepeatedTraining(after=unix(cluster, -12), before=before, device_seconds=3)
    repeated = result.train.model_copy(update={"lost_device_seconds": 7.5, "repeats": (repeat,)})
    cluster.succeed("train", result.model_copy(update={"train": repeated}), after=30)
    cluster.settle()
    assert lost(stage(cluster, "train")) == {"Failure": 7.5 * devices}


def unix(cluster: MemoryCluster, seconds: float = 0) -> float:
    return (cluster.now + timedelta(seconds=seconds)).timestamp()


def test_each_repetition_is_lost_by_the_end_of_the_pods_before_it() -> None:
    cluster = reached("train")
    repeats = []
    for number, (code, conditions, seconds) in enumerate(
        [(1, (), 4.0), (137, (PREEMPTED,), 2.5), (20, (), 1.0), (21, (), 0.5)]
    ):
        lose_pod(cluster, f"pod-{number}", code, *conditions)
        after = unix(cluster, -0.4 if number else 0.7)
        cluster.now += timedelta(seconds=30)
        repeats.append(RepeatedTraining(after=after, before=unix(cluster), device_seconds=seconds))
    out_of_memory = RepeatedTraining(
        after=unix(cluster, 20), before=unix(cluster, 21), device_seconds=8, out_of_memory=True
    )
    unseen = RepeatedTraining(after=unix(cluster, 40), before=unix(cluster, 50), device_seconds=0.25)
    cluster.start("train")
    result = trained()
    assert result.train is not None
    figures = {"lost_device_seconds": 20, "repeats": (*repeats, out_of_memory, unseen)}
    repeated = result.train.model_copy(update=figures)
    cluster.succeed("train", result.model_copy(update={"train": repeated}), after=60)
    cluster.settle()

    older = 20 - 4 - 2.5 - 1 - 0.5 - 8 - 0.25
    assert lost(stage(cluster, "train")) == {
        "Preemption": 2.5 + 1,
        "Failure": 4 + 8,
        "Unknown": 0.5 + 0.25 + older,
    }


def test_the_end_of_a_pod_is_the_cause_of_one_repetition_only() -> None:
    cluster = reached("train")
    begun = unix(cluster)
    lose_pod(cluster, "first", 1)
    cluster.now += timedelta(seconds=1)
    lose_pod(cluster, "second", 137, PREEMPTED)
    cluster.start("train", after=2)
    result = trained()
    assert result.train is not None
    repeats = tuple(
        RepeatedTraining(after=begun + after, before=begun + before, device_seconds=seconds)
        for after, before, seconds in ((9, 11.5, 3), (12, 23, 5))
    )
    repeated = result.train.model_copy(update={"lost_device_seconds": 8, "repeats": repeats})
    cluster.succeed("train", result.model_copy(update={"train": repeated}), after=30)
    cluster.settle()

    assert lost(stage(cluster, "train")) == {"Preemption": 5, "Failure": 3}


@pytest.mark.parametrize("times", [(1e20, 1e20), (-1e20, 1e20)])
def test_impossible_times_of_a_repetition_stop_no_run(times: tuple[float, float]) -> None:
    cluster = reached("train")
    cluster.start("train")
    result = trained()
    assert result.train is not None
    after, before = times
    repeats = tuple(
        RepeatedTraining(after=after, before=before, device_seconds=seconds) for seconds in (-500.0, 3.0)
    )
    repeated = result.train.model_copy(update={"lost_device_seconds": 3, "repeats": repeats})
    cluster.succeed("train", result.model_copy(update={"train": repeated}), after=30)
    cluster.settle()

    assert lost(stage(cluster, "train")) == {"Unknown": 3}


@pytest.mark.parametrize(("first", "cause"), [(0, "Preemption"), (1, "Failure")])
def test_of_pods_that_train_together_the_first_that_ended_by_itself_is_the_cause(
    first: int, cause: str
) -> None:
    cluster = training()
    both_run(cluster)
    cluster.now += timedelta(seconds=20)
    ends = [ended(cluster, 137), ended(cluster, 134)]
    conditions: list[list[Manifest]] = [[PREEMPTED], []]
    cluster.pod("train", ends[first], index=first, conditions=conditions[first], phase="Failed")
    cluster.now += timedelta(seconds=2)
    ends = [ended(cluster, 137), ended(cluster, 134)]
    cluster.pod("train", ends[1 - first], index=1 - first, conditions=conditions[1 - first], phase="Failed")
    cluster.settle()
    repeat = RepeatedTraining(after=unix(cluster, -9), before=unix(cluster, 30), device_seconds=12)
    for index in (0, 1):
        cluster.remove("Pod", f"{cluster.stage_job('train')['metadata']['name']}-{index}-pod")
    cluster.now += timedelta(seconds=40)
    result = trained()
    assert result.train is not None
    repeated = result.train.model_copy(update={"lost_device_seconds": 12, "repeats": (repeat,)})
    message = result.model_copy(update={"train": repeated}).to_json()
    for index in (0, 1):
        cluster.pod("train", ended(cluster, 0, message if index == 0 else ""), "second", index=index)
    cluster.end_job("train", "Complete")
    cluster.settle()

    assert {key: value for key, value in lost(stage(cluster, "train")).items() if key != "Waiting"} == {
        cause: 12
    }


def test_the_end_of_a_pod_is_written_with_the_message_about_it_and_not_again() -> None:
    cluster = reached("train")
    cluster.start("train")
    cluster.settle()
    cluster.now += timedelta(seconds=10)
    times = {"startedAt": at(cluster.now - timedelta(seconds=10)), "finishedAt": at(cluster.now)}
    before = cluster.writes
    cluster.pod("train", {"terminated": {**times, "exitCode": 1}}, phase="Failed", conditions=[PREEMPTED])
    cluster.settle()
    assert cluster.writes == before + 1
    cluster.now += timedelta(seconds=10)
    cluster.settle()
    assert cluster.writes == before + 1
    assert status(cluster)["usage"]["deviceSeconds"] == 10


def test_the_ends_of_more_pods_than_are_recorded_are_written_once() -> None:
    cluster = reached("train")
    cluster.start("train")
    cluster.settle()
    started = at(cluster.now)
    for number in range(MAX_ENDED_PODS + 2):
        cluster.now += timedelta(seconds=number % 3 == 0)
        times = {"startedAt": started, "finishedAt": at(cluster.now), "exitCode": 1}
        cluster.pod("train", {"terminated": times}, f"pod-{number}", phase="Failed")
    cluster.settle()
    before = cluster.writes
    for _ in range(3):
        cluster.reconcile("FineTuneJob", JOB)
    assert len(status(cluster)["usage"]["ended"]) == MAX_ENDED_PODS
    assert cluster.writes == before


@pytest.mark.parametrize("follows", ["waits for a node", "runs"])
def test_the_end_of_a_pod_is_kept_if_its_successor_is_seen_with_it(follows: str) -> None:
    cluster = reached("train")
    cluster.start("train")
    cluster.settle()
    cluster.now += timedelta(seconds=10)
    times = {"startedAt": at(cluster.now - timedelta(seconds=10)), "finishedAt": at(cluster.now)}
    cluster.pod("train", {"terminated": {**times, "exitCode": 1}}, phase="Failed", conditions=[PREEMPTED])
    cluster.now += timedelta(seconds=5)
    if follows == "runs":
        cluster.pod("train", {"running": {"startedAt": at(cluster.now)}}, "next")
    else:
        refused = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
        cluster.pod("train", {}, "next", conditions=[{**refused, "message": "0/3 nodes are available"}])
    cluster.settle()

    assert [each["cause"] for each in status(cluster)["usage"]["ended"]] == ["Preemption"]
    before = cluster.writes
    cluster.now += timedelta(seconds=60)
    cluster.settle()
    assert cluster.writes == before


@pytest.mark.parametrize(
    ("reason", "cause"), [("InvalidData", "BadData"), ("LossDiverged", "BadData"), ("OutOfMemory", "Failure")]
)
def test_a_run_that_failed_has_lost_the_time_of_the_stage_that_failed(reason: str, cause: str) -> None:
    cluster = reached("train", compute={"devices": 2})
    cluster.start("train", after=5)
    cluster.end("train", failed("train", reason, "row 3: no answer").to_json(), 10, after=20)
    cluster.settle()

    assert cluster.states("FineTuneJob", JOB) == {"DatasetReady": "Succeeded", "Preflighted": "Succeeded"} | {
        "Stalled": reason
    }
    assert lost(stage(cluster, "train")) == lost(status(cluster)["cost"]) == {cause: 40}


def test_a_run_whose_evaluation_failed_has_lost_the_evaluation_and_not_the_training() -> None:
    cluster = reached("evaluate")
    train = stage(cluster, "train")
    cluster.start("evaluate")
    cluster.end("evaluate", failed("evaluate", "InvalidData", "row 3: no answer").to_json(), 11, after=20)
    cluster.settle()

    assert "Stalled" in cluster.states("FineTuneJob", JOB)
    assert stage(cluster, "train") == train
    assert lost(status(cluster)["cost"]) == {"BadData": 20}


def test_a_missed_gate_is_a_result_and_loses_nothing() -> None:
    cluster = reached("evaluate")
    cluster.start("evaluate")
    cluster.succeed("evaluate", evaluated(tuned=0.1), after=20)
    cluster.settle()

    assert cluster.states("FineTuneJob", JOB)["Stalled"] == "GateFailed"
    assert lost(status(cluster)["cost"]) == {}


def test_a_run_at_its_time_limit_has_lost_nothing_because_it_can_continue() -> None:
    cluster = reached("train", compute={"maxRunSeconds": 60})
    cluster.start("train")
    cluster.now += timedelta(seconds=61)
    cluster.settle()
    for name in list(cluster.of("Job")):
        if "-train-" in name:
            cluster.remove("Job", name)
    cluster.settle()

    assert cluster.states("FineTuneJob", JOB)["Stalled"] == "MaxRunSecondsExceeded"
    assert lost(status(cluster)["cost"]) == {}


@pytest.mark.parametrize(("reason", "is_lost"), [("NotImplemented", False), ("ResultLost", True)])
def test_a_run_that_can_continue_keeps_the_time_of_its_stages(reason: str, *, is_lost: bool) -> None:
    cluster = reached("train")
    status(cluster)["stages"].append({"name": "train", "deviceSeconds": 30.0})
    job, snapshot = cluster.snapshot("FineTuneJob", JOB)
    assert isinstance(job, FineTuneJob)
    plan = RunPass(job, snapshot).plan(Failed(reason, "it ends here"))

    assert plan.status is not None
    assert lost(plan.status["stages"][-1]) == ({"Failure": 30} if is_lost else {})


def test_an_evaluation_loses_the_measurements_that_failed_and_no_other() -> None:
    cluster = trained_cluster()
    second_checkpoint(cluster)
    cluster.add(evaluation(checkpoints=[CHECKPOINT, SECOND]))
    cluster.settle()
    cluster.start("evaluate")
    cluster.succeed("evaluate", measured(), after=30)
    cluster.settle()
    cluster.start("evaluate")
    result = failed("evaluate", "OutOfMemory", "no memory", f"{EVALUATION_UID}-1")
    cluster.end("evaluate", result.to_json(), 1, after=20)
    cluster.settle()

    of = ("Evaluation", EVALUATION)
    assert cluster.states("Evaluation", EVALUATION)["Stalled"] == "OutOfMemory"
    assert stage(cluster, "evaluate", *of)["deviceSeconds"] == 50
    assert lost(stage(cluster, "evaluate", *of)) == lost(status(cluster, *of)["cost"]) == {"Failure": 20}


def test_each_reason_of_a_failed_stage_has_a_cause() -> None:
    of_inputs = {str(reason) for reason in FailureReason if cause_of(reason) == "BadData"}
    assert {"InvalidConfig", "InvalidData", "NoTrainingRows"} <= of_inputs
    assert of_inputs.isdisjoint({"OutOfMemory", "StoreUnavailable", "StepTimeout", "Internal"})
