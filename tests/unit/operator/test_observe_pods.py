# SPDX-License-Identifier: Apache-2.0
"""Each way in which a pod can fail or not start, and the message about it.

The statuses are those of kubelet, scheduler and controllers of Kubernetes 1.37, shortened.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from finetune_operator.observe.deployments import is_replaced, serving_trouble
from finetune_operator.observe.pod_startup import start_trouble, without_node_counts
from finetune_operator.observe.pod_termination import (
    NODE_REPORT_TIMEOUT,
    disruption,
    find_failure,
    node_trouble,
    seconds_until_overdue,
)
from finetune_operator.plan import Manifest

NOW = datetime(2030, 1, 2, 3, 0, 0, tzinfo=UTC)
STAMP = "2030-01-02T03:00:00Z"
SCHEDULED = {"type": "PodScheduled", "status": "True", "lastTransitionTime": STAMP}
BY_EVICTION = {"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet"}


def job(**status: Any) -> Manifest:
    metadata = {
        "name": "routing-train-1a2b3",
        "namespace": "team",
        "creationTimestamp": STAMP,
        "labels": {"finetune.dev/stage": "train", "finetune.dev/profile": "a100"},
    }
    return {"kind": "Job", "metadata": metadata, "spec": {"backoffLimit": 3}, "status": status}


def pod(deletion: str | None = None, **status: Any) -> Manifest:
    """A train pod on a node."""
    metadata = {
        "name": "routing-train-1a2b3-x",
        "namespace": "team",
        "creationTimestamp": STAMP,
        "labels": {"finetune.dev/stage": "train", "finetune.dev/profile": "a100"},
    }
    container = {
        "name": "trainer",
        "image": "registry.example/trainer:1",
        "resources": {"limits": {"memory": "4Gi"}},
    }
    return {
        "kind": "Pod",
        "metadata": metadata | ({"deletionTimestamp": deletion} if deletion else {}),
        "spec": {"nodeName": "node-1", "containers": [container]},
        "status": {"phase": "Pending", **status},
    }


def trainer(**state: Any) -> dict[str, Any]:
    """Statuses with the trainer's container in this state."""
    return {"containerStatuses": [{"name": "trainer", "image": "registry.example/trainer:1", "state": state}]}


def held(reason: str, message: str = "") -> dict[str, Any]:
    return trainer(waiting={"reason": reason, "message": message})


def ended(code: int, reason: str = "Error", message: str = "") -> dict[str, Any]:
    times = {"startedAt": STAMP, "finishedAt": STAMP}
    state = {"exitCode": code, "reason": reason, "message": message, **times}
    return {"phase": "Failed", **trainer(terminated=state)}


def unscheduled(message: str, reason: str = "Unschedulable") -> dict[str, Any]:
    return {"conditions": [{"type": "PodScheduled", "status": "False", "reason": reason, "message": message}]}


def init(**status: Any) -> dict[str, Any]:
    """Statuses of a pod with an injected init container that holds it up."""
    return {
        "initContainerStatuses": [{"name": "mesh-init", "image": "mesh:1", **status}],
        **held("PodInitializing"),
    }


def with_pull_secrets(pod: Manifest, *names: str) -> Manifest:
    pod["spec"]["imagePullSecrets"] = [{"name": name} for name in names]
    return pod


STARTS: dict[str, tuple[Manifest, str, list[str]]] = {
    "its image does not exist": (
        pod(**held("ErrImagePull", 'failed to pull image "registry.example/trainer:1": not found')),
        "ImageUnavailable",
        ["trainer:1 of the train pod cannot be pulled: check its name", "ErrImagePull: failed to pull"],
    ),
    "its image is named by its profile, and it has no pull secret": (
        pod(**held("ErrImagePull", "denied")),
        "ImageUnavailable",
        [
            "check its name (images of ComputeProfile a100, or the operator's default) and registry",
            "and that the nodes may pull it, because the pod has no pull secret. ErrImagePull: denied",
        ],
    ),
    "its image is private": (
        with_pull_secrets(pod(**held("ErrImagePull", "denied")), "registry", "mirror"),
        "ImageUnavailable",
        ["and that the pod's pull secrets exist in namespace team: registry, mirror. ErrImagePull"],
    ),
    "its image is asked for again": (
        pod(**held("ImagePullBackOff", "Back-off pulling image")),
        "ImageUnavailable",
        ["ImagePullBackOff: Back-off pulling image"],
    ),
    "its image has no valid name": (
        pod(**held("InvalidImageName", "couldn't parse image name")),
        "ImageUnavailable",
        ["InvalidImageName: couldn't parse image name"],
    ),
    "its image is not on the node and may not be pulled": (
        pod(**held("ErrImageNeverPull", "Container image is not present with pull policy of Never")),
        "ImageUnavailable",
        ["ErrImageNeverPull"],
    ),
    **{
        f"its image is held up by {reason}": (
            pod(**held(reason, "no luck")),
            "ImageUnavailable",
            ["trainer:1 of the train pod cannot be pulled: check its name", f"{reason}: no luck"],
        )
        for reason in ("ImageInspectError", "RegistryUnavailable", "SignatureValidationFailed")
    },
    "a Secret is missing": (
        pod(**held("CreateContainerConfigError", 'secret "hub" not found')),
        "SecretNotFound",
        ["Secret hub, which the platform adds to the train pod, does not exist in namespace team: create it"],
    ),
    "a ConfigMap is missing": (
        pod(**held("CreateContainerConfigError", 'configmap "proxy" not found')),
        "PodNotStarting",
        ["ConfigMap proxy, which the platform adds to the train pod, does not exist in namespace team"],
    ),
    "a key is missing": (
        pod(**held("CreateContainerConfigError", "couldn't find key x in Secret team/hub")),
        "PodNotStarting",
        ["CreateContainerConfigError: couldn't find key x in Secret team/hub", "kubectl describe pod"],
    ),
    "the runtime cannot make it": (
        pod(**held("CreateContainerError", "failed to reserve container name")),
        "PodNotStarting",
        ["CreateContainerError: failed to reserve container name"],
    ),
    "the runtime cannot start it": (
        pod(**held("RunContainerError", "failed to create containerd task")),
        "PodNotStarting",
        ["RunContainerError: failed to create containerd task"],
    ),
    "a reason that no release knew": (
        pod(**held("QuantumError", "the cat is dead")),
        "PodNotStarting",
        ["QuantumError: the cat is dead"],
    ),
    "no node has the devices": (
        pod(**unscheduled("0/1 nodes are available: 1 Insufficient nvidia.com/gpu.")),
        "Unschedulable",
        ["Insufficient nvidia.com/gpu", "check devices and resources of ComputeProfile a100"],
    ),
    "the nodes have a taint": (
        pod(**unscheduled("0/2 nodes are available: 2 node(s) had untolerated taint(s).")),
        "Unschedulable",
        ["check pods[].tolerations of ComputeProfile a100"],
    ),
    "no node matches": (
        pod(**unscheduled("0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector.")),
        "Unschedulable",
        ["check pods[].nodeSelector and affinity of ComputeProfile a100"],
    ),
    "every node is cordoned": (
        pod(**unscheduled("0/1 nodes are available: 1 node(s) were unschedulable.")),
        "Unschedulable",
        ["when a cordoned node is uncordoned"],
    ),
    "a claim is not bound": (
        pod(**unscheduled("0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims.")),
        "Unschedulable",
        ["kubectl get pvc -n team shows which claim is not bound"],
    ),
    "the scheduler says something new": (
        pod(**unscheduled("0/1 nodes are available: Mercury is in retrograde.")),
        "Unschedulable",
        ["kubectl describe pod routing-train-1a2b3-x shows more"],
    ),
    "it waits at a scheduling gate": (
        pod(**unscheduled("Scheduling is blocked due to non-empty scheduling gates", "SchedulingGated")),
        "Queued",
        ["waits for admission: Scheduling is blocked"],
    ),
    "an injected init container cannot be pulled": (
        pod(**init(state={"waiting": {"reason": "ErrImagePull", "message": "denied"}})),
        "ImageUnavailable",
        ["image mesh:1 of init container mesh-init, which the platform adds to the pod", "denied"],
    ),
    "an injected init container fails again and again": (
        pod(
            **init(
                state={"waiting": {"reason": "CrashLoopBackOff"}},
                lastState={"terminated": {"exitCode": 2, "reason": "Error"}},
            )
        ),
        "PodNotStarting",
        ["ends with exit code 2", "kubectl logs routing-train-1a2b3-x -c mesh-init"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("pod", "reason", "parts"), STARTS.values(), ids=STARTS)
def test_a_pod_that_does_not_start_says_why_and_what_to_do(
    pod: Manifest, reason: str, parts: list[str]
) -> None:
    trouble = start_trouble(job(), pod, NOW)
    assert trouble.reason == reason
    assert trouble.expected == (reason in {"Queued", "Unschedulable"})
    for part in parts:
        assert part in trouble.message


ENDS: dict[str, tuple[Manifest, str, list[str]]] = {
    "its container used more memory than its limit": (
        pod(**ended(137, "OOMKilled")),
        "OutOfMemory",
        ["limit of 4Gi: raise resources.memory for train in pods of ComputeProfile a100", "batchSize"],
    ),
    "its node ran out of memory": (
        pod(
            phase="Failed",
            reason="Evicted",
            message="The node was low on resource: memory. Threshold quantity: 100Mi, available: 60Mi.",
            conditions=[BY_EVICTION],
        ),
        "Evicted",
        [
            "low on resource: memory",
            "(raise resources.memory for train in pods of ComputeProfile a100 to what it uses)",
        ],
    ),
    "its node ran out of disk": (
        pod(
            phase="Failed",
            reason="Evicted",
            message="The node was low on resource: ephemeral-storage.",
            conditions=[BY_EVICTION],
        ),
        "Evicted",
        [
            "low on resource: ephemeral-storage",
            "raise resources.ephemeralStorage for train in pods of ComputeProfile a100 to what it uses",
        ],
    ),
    "its node has no inodes left": (
        pod(
            phase="Failed",
            reason="Evicted",
            message="The node was low on resource: inodes.",
            conditions=[BY_EVICTION],
        ),
        "Evicted",
        ["low on resource: inodes", "(kubectl describe node shows what the node lacks)"],
    ),
    "its container wrote more than its limit": (
        pod(
            phase="Failed",
            reason="Evicted",
            message='Container trainer exceeded its local ephemeral storage limit "1Gi". ',
        ),
        "Evicted",
        ["(raise or remove that limit: resources.ephemeralStorage for train in pods of ComputeProfile a100)"],
    ),
    "it wrote more than the limits of its containers": (
        pod(
            phase="Failed",
            reason="Evicted",
            message="Pod ephemeral local storage usage exceeds the total limit of containers 1Gi. ",
        ),
        "Evicted",
        ["(raise or remove that limit: resources.ephemeralStorage for train in pods of ComputeProfile a100)"],
    ),
    "a volume of its own is full": (
        pod(
            phase="Failed",
            reason="Evicted",
            message='Usage of EmptyDir volume "shared-memory" exceeds the limit "1Gi". ',
        ),
        "Evicted",
        ['"shared-memory" exceeds the limit "1Gi". (raise or remove that limit)'],
    ),
    "it ran past a deadline of its own": (
        pod(phase="Failed", reason="DeadlineExceeded", message="Pod was active on the node longer than …"),
        "DeadlineExceeded",
        ["activeDeadlineSeconds that the operator did not set: remove what sets it"],
    ),
    "its node had no room after all": (
        pod(phase="Failed", reason="OutOfcpu", message="Node didn't have enough resource: cpu"),
        "PodNotStarting",
        ["node node-1 rejected the train pod. OutOfcpu: Node didn't have enough resource: cpu"],
    ),
    "its node could not give it its devices": (
        pod(phase="Failed", reason="UnexpectedAdmissionError", message="no healthy devices present"),
        "PodNotStarting",
        ["UnexpectedAdmissionError: no healthy devices present"],
    ),
    "its command is not in the image": (
        pod(**ended(128, "StartError", 'exec: "python": executable file not found in $PATH')),
        "PodNotStarting",
        ["registry.example/trainer:1", "check images.trainer", "executable file not found"],
    ),
    "an injected init container failed": (
        pod(
            phase="Failed",
            **init(state={"terminated": {"exitCode": 3, "reason": "Error", "message": "no mesh"}}),
        ),
        "PodNotStarting",
        ["init container mesh-init", "exit code 3: no mesh", "-c mesh-init"],
    ),
    "bad config, and no word of its own": (
        pod(**ended(10)),
        "StageFailed",
        ["exit code 10: it left no message (kubectl logs routing-train-1a2b3-x)"],
    ),
    "bad data, in words that are no result": (pod(**ended(11, message="row 7")), "StageFailed", ["row 7"]),
    "a signal": (pod(**ended(137)), "StageFailed", ["exit code 137: it was killed by its node, or because"]),
    "a restarted node that knows nothing of it": (
        pod(**ended(137, "ContainerStatusUnknown", "The container could not be located when the pod …")),
        "StageFailed",
        ["exit code 137: The container could not be located"],
    ),
}


@pytest.mark.parametrize(("pod", "reason", "parts"), ENDS.values(), ids=ENDS)
def test_a_pod_that_ended_badly_says_how_and_what_to_do(pod: Manifest, reason: str, parts: list[str]) -> None:
    failed = {"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "message": "…"}
    trouble = find_failure(job(conditions=[failed]), [pod])
    assert trouble.reason == reason
    for part in parts:
        assert part in trouble.message


def test_a_job_past_its_deadline_says_so_although_its_pod_is_gone() -> None:
    failed = {"type": "Failed", "status": "True", "reason": "DeadlineExceeded", "message": "…"}
    trouble = find_failure(job(conditions=[failed]), [])
    assert trouble.reason == "DeadlineExceeded"
    assert "activeDeadlineSeconds" in trouble.message


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("PreemptionByScheduler", "was preempted by a pod of higher priority"),
        ("DeletionByTaintManager", "was removed from its node"),
        ("EvictionByEvictionAPI", "was evicted through the API, for example by kubectl drain"),
        ("DeletionByPodGC", "was deleted because its node is gone"),
        ("TerminationByKubelet", "was ended by its node"),
        ("Novel", "was ended by the cluster (Novel)"),
    ],
)
def test_a_pod_that_the_cluster_took_away_says_who_took_it(reason: str, said: str) -> None:
    taken = {"type": "DisruptionTarget", "status": "True", "reason": reason}
    assert (disruption(pod(conditions=[taken])) or "").startswith(said)


def test_an_eviction_that_kubernetes_makes_up_for_repeats_what_the_node_lacked_and_says_what_helps() -> None:
    evicted = pod(phase="Failed", reason="Evicted", message="low on memory", conditions=[BY_EVICTION])
    assert disruption(evicted) == (
        "was ended by its node: low on memory (raise resources.memory for train in pods of ComputeProfile"
        " a100 to what it uses)"
    )
    assert disruption(pod(conditions=[{**BY_EVICTION, "status": "False"}])) is None


RUNNING = {"phase": "Running", **trainer(running={"startedAt": STAMP})}


def test_a_terminating_pod_is_lost_with_its_node_half_a_minute_after_its_deadline() -> None:
    terminating = pod(deletion=STAMP, **RUNNING)
    assert (
        node_trouble(terminating, "the train pod", NOW + NODE_REPORT_TIMEOUT - timedelta(seconds=1)) is None
    )
    assert seconds_until_overdue(terminating, NOW) == NODE_REPORT_TIMEOUT.total_seconds() + 1
    trouble = node_trouble(terminating, "the train pod", NOW + NODE_REPORT_TIMEOUT)
    assert trouble is not None
    assert trouble.reason == "NodeLost"
    for step in (
        "kubectl delete node node-1",
        "kubectl taint node node-1 node.kubernetes.io/out-of-service=",
    ):
        assert step in trouble.message


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_pod_whose_end_the_node_has_confirmed_is_not_lost_however_long_it_stays(phase: str) -> None:
    confirmed = pod(deletion=STAMP, phase=phase)
    assert node_trouble(confirmed, "the train pod", NOW + timedelta(days=1)) is None
    assert seconds_until_overdue(confirmed, NOW) is None


def test_a_pod_that_never_had_a_node_is_not_lost() -> None:
    gated = pod(deletion=STAMP)
    del gated["spec"]["nodeName"]
    assert node_trouble(gated, "the train pod", NOW + timedelta(days=1)) is None


UNHEARD_OF = [{"type": "Ready", "status": "False"}, {"type": "ContainersReady", "status": "True"}]


@pytest.mark.parametrize("status", [{**RUNNING, "conditions": UNHEARD_OF}, {"phase": "Unknown"}])
def test_a_pod_on_a_node_that_does_not_answer_is_lost_for_now(status: dict[str, Any]) -> None:
    trouble = node_trouble(pod(**status), "the train pod", NOW)
    assert trouble is not None
    assert trouble.reason == "NodeLost"
    assert "kubectl describe node node-1" in trouble.message


def test_a_readiness_gate_that_is_not_open_is_no_lost_node() -> None:
    gated = pod(**RUNNING, conditions=UNHEARD_OF)
    gated["spec"]["readinessGates"] = [{"conditionType": "example.com/gate"}]
    assert node_trouble(gated, "the train pod", NOW) is None


def engine(**state: Any) -> dict[str, Any]:
    """Statuses of an endpoint's pod."""
    return {"containerStatuses": [{"name": "engine", "image": "registry.example/trainer:1", **state}]}


SERVES: dict[str, tuple[Manifest, str, str]] = {
    "no node has room": (
        pod(**unscheduled("0/1 nodes are available: 1 Insufficient cpu.")),
        "Unschedulable",
        "check devices and resources of ComputeProfile a100",
    ),
    "it waits at a scheduling gate": (
        pod(**unscheduled("Scheduling is blocked due to non-empty scheduling gates", "SchedulingGated")),
        "Queued",
        "pod routing-train-1a2b3-x waits for admission: Scheduling is blocked",
    ),
    "its image cannot be pulled": (
        pod(**engine(state={"waiting": {"reason": "ErrImagePull", "message": "denied"}})),
        "ImageUnavailable",
        "image registry.example/trainer:1 of pod routing-train-1a2b3-x cannot be pulled",
    ),
    "a Secret is missing": (
        pod(
            **engine(
                state={"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "s" not found'}}
            )
        ),
        "SecretNotFound",
        "Secret s, which the platform adds to pod routing-train-1a2b3-x, does not exist in namespace team",
    ),
    "it was killed for its memory and starts again": (
        pod(
            **engine(
                state={"waiting": {"reason": "CrashLoopBackOff"}},
                lastState={"terminated": {"exitCode": 137, "reason": "OOMKilled"}},
            )
        ),
        "OutOfMemory",
        "raise resources.memory for serve in pods of the ComputeProfile",
    ),
    "its models are corrupt": (
        pod(**engine(state={"terminated": {"exitCode": 11, "message": "ArtifactCorrupt: weights"}})),
        "PodNotStarting",
        "ended with exit code 11: ArtifactCorrupt: weights",
    ),
    "its container cannot be made": (
        pod(**engine(state={"waiting": {"reason": "CreateContainerError", "message": "no space"}})),
        "PodNotStarting",
        "CreateContainerError: no space",
    ),
    "it was evicted": (
        pod(phase="Failed", reason="Evicted", message="The node was low on resource: memory."),
        "Evicted",
        "resource: memory. (raise resources.memory for serve in pods of ComputeProfile a100",
    ),
    "its node had no room after all": (
        pod(phase="Failed", reason="OutOfcpu", message="Node didn't have enough resource: cpu"),
        "PodNotStarting",
        "enough resource: cpu (kubectl describe node node-1 shows its free resources)",
    ),
    "its node does not answer": (
        pod(phase="Running", conditions=UNHEARD_OF),
        "NodeLost",
        "kubectl describe node node-1",
    ),
}


@pytest.mark.parametrize(("pod", "reason", "part"), SERVES.values(), ids=SERVES)
def test_a_pod_of_an_endpoint_that_does_not_serve_says_why_and_what_to_do(
    pod: Manifest, reason: str, part: str
) -> None:
    trouble = serving_trouble(pod, NOW)
    assert trouble is not None
    assert trouble.reason == reason
    assert part in trouble.message
    assert trouble.final == ("exit code 11" in trouble.message)


def test_a_pod_of_an_endpoint_that_starts_or_serves_is_no_trouble() -> None:
    starting = pod(**engine(state={"waiting": {"reason": "ContainerCreating"}}), conditions=[SCHEDULED])
    serving = pod(phase="Running", **engine(state={"running": {"startedAt": STAMP}}))
    for each in (starting, serving):
        assert serving_trouble(each, NOW) is None
        assert not is_replaced(each)


def test_the_schedulers_counts_are_left_out_so_that_their_changes_cause_no_write() -> None:
    said = (
        "0/12 nodes are available: {} Insufficient nvidia.com/gpu, {} node(s) had untolerated taint {{a}}."
        " preemption: 0/12 nodes are available: {} No preemption victims found for incoming pod."
    )
    texts = {without_node_counts(said.format(*counts)) for counts in ((5, 7, 12), (7, 5, 11), (10, 2, 12))}
    (text,) = texts
    assert text == (
        "no nodes are available: Insufficient nvidia.com/gpu, node(s) had untolerated taint {a}."
        " preemption: no nodes are available: No preemption victims found for incoming pod."
    )
    assert without_node_counts("0/2 nodes are available: 2 X, 1 B") == without_node_counts(
        "0/3 nodes are available: 1 B, 2 X"
    )
    assert without_node_counts("Mercury is in retrograde. 1 of 2.") == "Mercury is in retrograde. 1 of 2."
