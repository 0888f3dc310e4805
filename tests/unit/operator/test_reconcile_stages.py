# SPDX-License-Identifier: Apache-2.0
"""A stage's pod that waits, fails or disappears, and the condition of its run."""

import json
from datetime import timedelta

import pytest

from finetune_client.local.cluster import at
from finetune_operator.plan import Manifest
from finetune_trainer.contract.vocabulary import ExitCode
from tests.unit.operator.memorycluster import NOW, MemoryCluster
from tests.unit.operator.runobjects import CHECKPOINT, JOB, evaluated, failed, trained
from tests.unit.operator.runsteps import reached


def state(cluster: MemoryCluster, type_: str = "Reconciling") -> tuple[str, str]:
    cluster.settle()
    condition = cluster.condition("FineTuneJob", JOB, type_)
    assert condition is not None
    return condition["reason"], condition["message"]


def scheduled(cluster: MemoryCluster) -> Manifest:
    return {"type": "PodScheduled", "status": "True", "lastTransitionTime": at(cluster.now)}


UNSCHEDULABLE = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "message": "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.",
}

WAITING: list[tuple[str, Manifest, list[Manifest], str, list[str]]] = [
    (
        "no node has room",
        {},
        [UNSCHEDULABLE],
        "Unschedulable",
        ["no node can take the train pod yet: no nodes are available: Insufficient", "ComputeProfile cpu"],
    ),
    (
        "the image cannot be pulled",
        {"waiting": {"reason": "ImagePullBackOff", "message": "unauthorized"}},
        [],
        "ImageUnavailable",
        ["image registry.example/trainer:1 of the train pod cannot be pulled", "unauthorized"],
    ),
    (
        "a Secret is missing",
        {"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "hub" not found'}},
        [],
        "SecretNotFound",
        ["Secret hub, which the platform adds to the train pod, does not exist in namespace team"],
    ),
    (
        "the container's config is wrong in another way",
        {"waiting": {"reason": "CreateContainerConfigError", "message": "couldn't find key x"}},
        [],
        "PodNotStarting",
        ["does not start. CreateContainerConfigError: couldn't find key x"],
    ),
    ("it is new", {"waiting": {"reason": "ContainerCreating"}}, [], "Queued", ["is being created"]),
    (
        "it ended and the next follows",
        {"terminated": {"exitCode": ExitCode.PREEMPTED_SAVED.value}},
        [],
        "Queued",
        ["exit code 20 with its state saved; the next pod follows"],
    ),
]


@pytest.mark.parametrize(
    ("container", "conditions", "reason", "messages"),
    [row[1:] for row in WAITING],
    ids=[row[0] for row in WAITING],
)
def test_the_reason_why_a_pod_does_not_run_is_reported(
    container: Manifest, conditions: list[Manifest], reason: str, messages: list[str]
) -> None:
    cluster = reached("train")
    cluster.pod("train", container, conditions=conditions)
    found, message = state(cluster)
    assert found == reason
    for part in messages:
        assert part in message


def test_a_running_pod_is_training() -> None:
    cluster = reached("train")
    cluster.start("train")
    assert state(cluster) == ("Training", "train is running")
    assert cluster.objects["FineTuneJob", JOB]["status"]["phase"] == "Training"


def test_a_pod_that_has_a_node_and_does_not_start_is_named_after_two_minutes() -> None:
    cluster = reached("train")
    pod = cluster.pod("train", {"waiting": {"reason": "ContainerCreating"}}, conditions=[scheduled(cluster)])
    assert state(cluster) == ("Queued", "the train pod is being created")
    assert cluster.plan("FineTuneJob", JOB).requeue_after == 121
    cluster.now += timedelta(seconds=121)
    reason, message = state(cluster)
    assert reason == "PodNotStarting"
    assert f"kubectl describe pod {pod['metadata']['name']}" in message


def test_a_job_without_a_pod_for_a_minute_points_to_quota_and_admission() -> None:
    cluster = reached("train")
    assert state(cluster)[0] == "Queued"
    cluster.now += timedelta(seconds=61)
    reason, message = state(cluster)
    assert reason == "PodNotStarting"
    assert "Pod Security or another admission policy may reject it" in message


def test_a_job_that_kueue_holds_back_is_queued_however_long_it_takes() -> None:
    cluster = reached("train")
    job = cluster.stage_job("train")
    job["spec"]["suspend"] = True
    job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = "gpus"
    cluster.now += timedelta(days=1)
    reason, message = state(cluster)
    assert reason == "Queued"
    assert message.startswith("the train Job waits in LocalQueue gpus for admission")


def test_a_terminating_job_is_waited_for_and_not_replaced() -> None:
    cluster = reached("train")
    job = cluster.stage_job("train")
    job["metadata"]["deletionTimestamp"] = at(cluster.now)
    assert state(cluster) == ("Queued", "waiting for the previous train pod to end")
    assert cluster.plan("FineTuneJob", JOB).create == ()


ENDED: list[tuple[str, str, int, str, str, list[str]]] = [
    (
        "its own words",
        failed("train", "LossNotFinite", "the loss is NaN at step 12: lower learningRate").to_json(),
        ExitCode.BAD_CONFIG,
        "",
        "LossNotFinite",
        ["the loss is NaN at step 12"],
    ),
    (
        "its own words on a divergence",
        failed("train", "LossDiverged", "step 65: the training loss is 9.4 nats per token").to_json(),
        ExitCode.BAD_CONFIG,
        "",
        "LossDiverged",
        ["step 65: the training loss is 9.4 nats per token"],
    ),
    (
        "out of memory",
        "",
        137,
        "OOMKilled",
        "OutOfMemory",
        ["its limit of 4Gi: raise resources.memory for train in pods of ComputeProfile cpu", "batchSize"],
    ),
    (
        "an exit code and a message",
        "Traceback …",
        1,
        "",
        "StageFailed",
        ["exit code 1: Traceback …", "kubectl logs"],
    ),
    ("an exit code only", "", 2, "", "StageFailed", ["exit code 2: it left no message"]),
    (
        "another run's result",
        failed("train", "LossNotFinite", "NaN", run="other").to_json(),
        ExitCode.BAD_CONFIG,
        "",
        "StageFailed",
        ["exit code 10"],
    ),
]


@pytest.mark.parametrize(
    ("message", "code", "container", "reason", "parts"),
    [row[1:] for row in ENDED],
    ids=[row[0] for row in ENDED],
)
def test_a_failed_stage_stalls_the_run_with_its_reason(
    message: str, code: int, container: str, reason: str, parts: list[str]
) -> None:
    cluster = reached("train")
    cluster.start("train")
    cluster.end("train", message, exit_code=code, reason=container, after=5)
    found, text = state(cluster, "Stalled")
    assert found == reason
    for part in parts:
        assert part in text
    assert cluster.states("FineTuneJob", JOB)["Preflighted"] == "Succeeded"
    assert [stage.name for stage in cluster.job(JOB).status.stages] == ["preflight", "train"]


def evicted(cluster: MemoryCluster, message: str, *conditions: Manifest) -> None:
    """The kubelet has evicted the train pod, and no container of it is known any more."""
    pod = cluster.pod(
        "train", {}, phase="Failed", reason="Evicted", message=message, conditions=[*conditions]
    )
    pod["status"]["containerStatuses"] = []


def test_a_pod_evicted_for_its_own_limit_counts_and_ends_the_run_in_the_end() -> None:
    cluster = reached("train")
    evicted(cluster, "Pod ephemeral local storage usage exceeds the total limit of containers 1Gi. ")
    cluster.stage_job("train")["status"] = {"failed": 1}
    reason, message = state(cluster)
    assert reason == "Queued"
    assert message.startswith("attempt 1 of 4 at train failed with Evicted and is retried: ")
    cluster.end_job("train", "Failed")
    cluster.now += timedelta(seconds=11)
    reason, message = state(cluster, "Stalled")
    assert reason == "Evicted"
    assert message.endswith(
        "(raise or remove that limit: resources.ephemeralStorage for train in pods of ComputeProfile cpu)"
    )


def test_a_pod_evicted_for_its_node_is_followed_by_another_and_the_run_reports_what_helps() -> None:
    cluster = reached("train")
    pressure = {"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet"}
    evicted(cluster, "The node was low on resource: memory. ", pressure)
    pressed = "The node was low on resource: memory."
    advice = "raise resources.memory for train in pods of ComputeProfile cpu to what it uses"
    assert state(cluster) == (
        "Queued",
        f"the train pod was ended by its node: {pressed} ({advice}); the next pod follows",
    )


def test_a_failed_job_without_pods_repeats_the_message_of_the_job() -> None:
    cluster = reached("train")
    cluster.end_job("train", "Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit")
    assert state(cluster)[0] == "Training"
    cluster.now += timedelta(seconds=11)
    reason, message = state(cluster, "Stalled")
    assert reason == "StageFailed"
    assert "BackoffLimitExceeded: Job has reached the specified backoff limit" in message


def lost(cluster: MemoryCluster) -> MemoryCluster:
    """The train Job is complete and its pod has disappeared with its message."""
    cluster.end_job("train", "Complete")
    cluster.now += timedelta(seconds=11)
    cluster.settle()
    return cluster


def test_a_complete_job_is_given_time_for_its_pods_last_state_to_be_seen() -> None:
    cluster = reached("train")
    cluster.start("train")
    cluster.end_job("train", "Complete")
    assert state(cluster) == ("Training", "train is running")
    assert not cluster.has_stage_job("collect")
    cluster.end("train", trained().to_json(), after=1)
    cluster.settle()
    assert not cluster.has_stage_job("collect")
    assert set(cluster.of("Checkpoint")) == {CHECKPOINT}


def test_the_result_of_a_pod_that_is_gone_is_read_from_the_store() -> None:
    cluster = lost(reached("train"))
    assert state(cluster)[0] == "Collecting"
    config = cluster.config("collect")
    assert (config.stage, config.of) == ("collect", "train")
    cluster.end("collect", trained().to_json())
    cluster.settle()
    assert set(cluster.of("Checkpoint")) == {CHECKPOINT}


COLLECTING = "reading the result of train from the store"
COLLECTORS: list[tuple[str, Manifest, list[Manifest], str, str]] = [
    ("it runs", {"running": {"startedAt": at(NOW)}}, [], "Collecting", COLLECTING),
    ("another one follows", {"terminated": {"exitCode": 1}}, [], "Collecting", COLLECTING),
    (
        "it is new",
        {"waiting": {"reason": "ContainerCreating"}},
        [],
        "Collecting",
        f"{COLLECTING}: the collect pod is being created",
    ),
    (
        "its image cannot be pulled",
        {"waiting": {"reason": "ImagePullBackOff", "message": "unauthorized"}},
        [],
        "ImageUnavailable",
        "image registry.example/trainer:1 of the collect pod cannot be pulled",
    ),
    ("no node has room", {}, [UNSCHEDULABLE], "Unschedulable", "no node can take the collect pod yet"),
]


@pytest.mark.parametrize(
    ("container", "conditions", "reason", "part"),
    [row[1:] for row in COLLECTORS],
    ids=[row[0] for row in COLLECTORS],
)
def test_the_reason_why_a_collector_is_unfinished_is_reported(
    container: Manifest, conditions: list[Manifest], reason: str, part: str
) -> None:
    cluster = lost(reached("train"))
    cluster.pod("collect", container, conditions=conditions)
    found, message = state(cluster)
    assert found == reason
    assert message.startswith(part)
    if found == "Collecting":
        assert message == part
    is_blocked = cluster.objects["FineTuneJob", JOB]["status"]["phase"] == "Blocked"
    assert is_blocked == (reason == "ImageUnavailable")


def test_a_collector_without_a_pod_for_a_minute_points_to_quota_and_admission() -> None:
    cluster = lost(reached("train"))
    assert cluster.plan("FineTuneJob", JOB).requeue_after == 11
    cluster.now += timedelta(seconds=61)
    assert state(cluster)[0] == "PodNotStarting"


def test_a_collector_on_a_lost_node_is_reported() -> None:
    cluster = lost(reached("train"))
    cluster.start("collect")
    (pod,) = [pod for (kind, name), pod in cluster.objects.items() if kind == "Pod" and "collect" in name]
    pod["spec"] = {**pod["spec"], "nodeName": "node-1"}
    pod["metadata"]["deletionTimestamp"] = at(cluster.now)
    assert state(cluster)[0] == "Collecting"
    assert cluster.plan("FineTuneJob", JOB).requeue_after == 31
    cluster.now += timedelta(seconds=31)
    reason, message = state(cluster)
    assert reason == "NodeLost"
    assert message.startswith("the collect pod ")


VANISHED = "the pods that read it were removed before the operator saw how they ended"
UNREADABLE = "the operator cannot read it (it begins '{not a result'): check that the trainer image"


@pytest.mark.parametrize(("message", "why"), [(None, VANISHED), ("{not a result", UNREADABLE)])
def test_a_result_that_does_not_arrive_is_read_three_times(message: str | None, why: str) -> None:
    cluster = lost(reached("train"))
    jobs = []
    for attempt in (1, 2, 3):
        jobs.append(cluster.stage_job("collect")["metadata"]["uid"])
        if message is None:
            cluster.end_job("collect", "Complete")
        else:
            cluster.end("collect", message)
        cluster.now += timedelta(seconds=11)
        cluster.settle()
        if attempt < 3:
            reason, said = state(cluster)
            assert reason == "Collecting"
            assert why in said
            assert f"attempt {attempt} of 3" in said
            cluster.now += timedelta(seconds=300)
            cluster.settle()

    reason, said = state(cluster, "Stalled")
    assert reason == "ResultLost"
    assert f"3 attempts; {why}" in said
    assert len(set(jobs)) == 3


def test_a_failure_in_words_of_a_newer_trainer_keeps_its_reason() -> None:
    cluster = reached("train")
    message = {**failed("train", "LossOdd", "NaN at step 12").to_dict(), "news": {"a": 1}}
    cluster.end("train", json.dumps(message), exit_code=10)
    assert state(cluster, "Stalled") == ("LossOdd", "NaN at step 12")


def test_scores_of_a_newer_trainer_are_data_and_the_known_ones_count() -> None:
    cluster = reached("evaluate")
    message = evaluated().to_dict()
    for metric, subject in (("bleu", "Teacher"), ("BLEU-4", "Tuned"), ("bleu", "the teacher")):
        score = {"metric": metric, "subject": subject, "value": 1, "rows": 2}
        message["evaluate"]["scores"].append(score)
    cluster.end("evaluate", json.dumps(message))
    cluster.settle()
    evaluation = cluster.job(JOB).status.evaluation
    assert evaluation is not None
    assert evaluation.verdict == "Passed"
    assert {score.metric for score in evaluation.scores} == {"exact_match", "loss", "bleu"}
    assert len(evaluation.scores) == len(message["evaluate"]["scores"]) - 2


def test_a_result_that_is_nowhere_ends_the_run() -> None:
    cluster = lost(reached("train"))
    cluster.end("collect", failed("train", "ArtifactNotFound", "no result.json").to_json(), exit_code=10)
    reason, message = state(cluster, "Stalled")
    assert reason == "ResultLost"
    assert "no result.json" in message


def test_a_success_that_does_not_say_what_it_made_ends_the_run() -> None:
    cluster = reached("train")
    cluster.succeed("train", trained().model_copy(update={"train": None}))
    assert state(cluster, "Stalled")[0] == "ResultLost"
