# SPDX-License-Identifier: Apache-2.0
"""A stage whose Job has several pods, or whose pods are not alone."""

from datetime import timedelta

import pytest

from finetune_client.local.cluster import at
from finetune_operator.plan import Manifest
from finetune_trainer.contract.vocabulary import ExitCode
from tests.unit.operator.memorycluster import MemoryCluster
from tests.unit.operator.runobjects import CHECKPOINT, JOB, failed, trained
from tests.unit.operator.runsteps import reached


def ended(cluster: MemoryCluster, code: int, message: str = "", reason: str = "Error") -> Manifest:
    times = {"startedAt": at(cluster.now), "finishedAt": at(cluster.now)}
    return {"terminated": {"exitCode": code, "message": message, "reason": reason, **times}}


def reconciling(cluster: MemoryCluster) -> tuple[str, str]:
    cluster.settle()
    condition = cluster.condition("FineTuneJob", JOB, "Reconciling")
    assert condition is not None
    return condition["reason"], condition["message"]


def tried_before(message: str) -> MemoryCluster:
    """A run whose first train pod failed with this message; its second is about to end."""
    cluster = reached("train")
    cluster.pod("train", ended(cluster, 12, message), "first")
    cluster.now += timedelta(seconds=10)
    return cluster


NO_SPACE = failed("train", "StoreUnavailable", "no space left").to_json()


def test_a_completed_job_does_not_fail_because_of_the_message_of_an_earlier_pod() -> None:
    cluster = tried_before(NO_SPACE)
    cluster.pod("train", ended(cluster, 0), "second")
    cluster.end_job("train", "Complete")
    cluster.now += timedelta(seconds=11)
    assert reconciling(cluster)[0] == "Collecting"
    cluster.end("collect", trained().to_json())
    cluster.settle()
    assert set(cluster.of("Checkpoint")) == {CHECKPOINT}


def test_a_completed_job_waits_for_the_message_of_the_pod_that_succeeded() -> None:
    cluster = tried_before(NO_SPACE)
    cluster.pod("train", {"running": {"startedAt": at(cluster.now)}}, "second")
    cluster.end_job("train", "Complete")
    assert reconciling(cluster) == ("Training", "train is running")
    cluster.pod("train", ended(cluster, 0, trained().to_json()), "second")
    cluster.settle()
    assert not cluster.has_stage_job("collect")
    assert set(cluster.of("Checkpoint")) == {CHECKPOINT}


def test_the_last_pod_of_a_failed_job_decides_the_message() -> None:
    cluster = tried_before(NO_SPACE)
    cluster.pod("train", ended(cluster, 137, reason="OOMKilled"), "second")
    cluster.end_job("train", "Failed", "BackoffLimitExceeded")
    cluster.settle()
    assert cluster.states("FineTuneJob", JOB)["Stalled"] == "OutOfMemory"


def test_a_pod_that_never_ran_leaves_the_word_to_the_one_before() -> None:
    cluster = tried_before(failed("train", "LossNotFinite", "NaN at step 12").to_json())
    cluster.pod("train", {"waiting": {"reason": "ContainerCreating"}}, "second")
    cluster.end_job("train", "Failed", "BackoffLimitExceeded")
    assert reconciling(cluster) == ("Training", "train is running")
    cluster.now += timedelta(seconds=11)
    cluster.settle()
    assert cluster.states("FineTuneJob", JOB)["Stalled"] == "LossNotFinite"


def test_a_job_that_ran_past_a_deadline_reports_it_whatever_the_exit_code_of_its_pod() -> None:
    cluster = reached("train")
    cluster.pod("train", ended(cluster, ExitCode.PREEMPTED_SAVED), "first")
    cluster.end_job("train", "Failed", "DeadlineExceeded")
    cluster.settle()
    stalled = cluster.condition("FineTuneJob", JOB, "Stalled")
    assert stalled is not None
    assert "activeDeadlineSeconds" in stalled["message"]


@pytest.mark.parametrize(
    ("code", "message", "reason", "said"),
    [
        (
            1,
            "Traceback …",
            "Error",
            "failed with StageFailed and is retried: the train pod ended with exit",
        ),
        (137, "", "OOMKilled", "failed with OutOfMemory and is retried: the train pod was killed"),
    ],
)
def test_between_two_attempts_the_run_reports_how_the_last_one_failed_and_that_it_retries(
    code: int, message: str, reason: str, said: str
) -> None:
    cluster = reached("train")
    cluster.pod("train", ended(cluster, code, message, reason), "first")
    cluster.stage_job("train")["status"] = {"failed": 2}
    found, text = reconciling(cluster)
    assert found == "Queued"
    assert text.startswith(f"attempt 2 of 4 at train {said}")


def test_an_attempt_that_the_cluster_ended_is_not_called_a_failure() -> None:
    cluster = reached("train")
    disrupted = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}
    cluster.pod("train", ended(cluster, 137), "first", conditions=[disrupted])
    evicted = "the train pod was evicted through the API, for example by kubectl drain; the next pod follows"
    assert reconciling(cluster) == ("Queued", evicted)


@pytest.mark.parametrize(
    ("code", "failures"), [(ExitCode.BAD_DATA, 0), (ExitCode.STORE_UNAVAILABLE, 1), (1, 4)]
)
def test_after_the_last_attempt_no_other_is_announced(code: int, failures: int) -> None:
    cluster = reached("train")
    cluster.pod("train", ended(cluster, code), "first")
    cluster.stage_job("train")["status"] = {"failed": failures}
    assert reconciling(cluster) == ("Training", "train is running")


def left_alone(cluster: MemoryCluster) -> str:
    """Delete the train Job as `kubectl delete job` does: its pod goes on for a while; its name."""
    cluster.start("train")
    job = cluster.stage_job("train")["metadata"]["name"]
    name, pod = next((n, p) for n, p in cluster.of("Pod").items() if n.startswith(job))
    cluster.remove("Job", job)
    cluster.objects["Pod", name] = pod
    pod["status"]["phase"] = "Running"
    return name


def test_no_second_train_pod_starts_before_that_of_a_deleted_job_has_ended() -> None:
    cluster = reached("train")
    name = left_alone(cluster)
    reason, message = reconciling(cluster)
    assert reason == "Queued"
    assert message.startswith(f"waiting for pod {name} of a deleted train Job to end")
    assert not cluster.has_stage_job("train")
    cluster.objects["Pod", name]["status"]["phase"] = "Failed"
    cluster.settle()
    assert cluster.has_stage_job("train")


def test_a_pod_of_some_other_job_that_carries_our_labels_holds_nothing_up() -> None:
    cluster = reached("train")
    name = left_alone(cluster)
    cluster.objects["Pod", name]["metadata"]["ownerReferences"][0]["name"] = "somebody-elses"
    cluster.settle()
    assert cluster.has_stage_job("train")


SIDECAR = {
    "name": "mesh-proxy",
    "state": {"terminated": {"exitCode": 1, "reason": "OOMKilled", "message": "proxy"}},
}


def test_a_container_that_a_platform_injects_does_not_speak_for_the_trainer() -> None:
    cluster = reached("train")
    pod = cluster.pod("train", {"running": {"startedAt": at(cluster.now)}})
    pod["status"]["containerStatuses"].insert(0, SIDECAR)
    assert reconciling(cluster) == ("Training", "train is running")
    pod["status"]["containerStatuses"] = [SIDECAR]
    assert reconciling(cluster)[0] == "Queued"


RUNNING_PROXY = {"name": "mesh-proxy", "state": {"running": {"startedAt": "2030-01-02T03:00:00Z"}}}


@pytest.mark.parametrize(("code", "before"), [(0, "Training"), (1, "Queued")])
def test_an_injected_container_that_outlives_the_trainer_is_named_after_a_minute(
    code: int, before: str
) -> None:
    cluster = reached("train")
    pod = cluster.pod("train", ended(cluster, code), phase="Running")
    pod["status"]["containerStatuses"].insert(0, RUNNING_PROXY)
    assert reconciling(cluster)[0] == before
    assert cluster.plan("FineTuneJob", JOB).requeue_after == 61
    cluster.now += timedelta(seconds=61)
    reason, message = reconciling(cluster)
    assert reason == "PodNotEnding"
    assert "container mesh-proxy, which the platform adds to the pod, still runs" in message
    assert "make mesh-proxy a native sidecar" in message
    assert f"kubectl delete pod {pod['metadata']['name']} -n team" in message
    assert cluster.objects["FineTuneJob", JOB]["status"]["phase"] == "Blocked"


@pytest.mark.parametrize(
    ("metadata", "phase", "proxy"),
    [
        pytest.param({"deletionTimestamp": "2030-01-02T04:00:00Z"}, "Running", RUNNING_PROXY, id="deleted"),
        pytest.param({}, "Succeeded", RUNNING_PROXY, id="has ended"),
        pytest.param({}, "Running", SIDECAR, id="ends too"),
    ],
)
def test_an_injected_container_that_ends_by_itself_is_no_trouble(
    metadata: Manifest, phase: str, proxy: Manifest
) -> None:
    cluster = reached("train")
    pod = cluster.pod("train", ended(cluster, 0), phase=phase)
    pod["metadata"].update(metadata)
    pod["status"]["containerStatuses"].append(proxy)
    cluster.now += timedelta(seconds=61)
    assert reconciling(cluster) == ("Training", "train is running")


def test_messages_name_the_trainers_image_and_memory_limit_and_not_those_of_an_injected_container() -> None:
    cluster = reached("train")
    proxy = {
        "name": "mesh-proxy",
        "image": "mesh:1",
        "resources": {"limits": {"memory": "64Mi"}},
    }
    pod = cluster.pod("train", {"waiting": {"reason": "ImagePullBackOff"}})
    pod["spec"] = {**pod["spec"], "containers": [proxy, *pod["spec"]["containers"]]}
    assert "image registry.example/trainer:1 of the train pod" in reconciling(cluster)[1]
    cluster.pod("train", ended(cluster, 137, reason="OOMKilled"))
    assert "its limit of 4Gi" in reconciling(cluster)[1]
