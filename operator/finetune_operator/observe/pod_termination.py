# SPDX-License-Identifier: Apache-2.0
"""Ends of a stage's pods: failed, disrupted, overdue, or lost with their node, with advice.

Each end has one cause, which metrics and lost time use. A deleted pod stays until its node reports that its
containers have ended. A dead node never reports: the pod stays Terminating, and its Job creates no
replacement, because two pods that train into one folder would be worse than none. Kubernetes cannot
distinguish a dead node from an unreachable one; an administrator can.
"""

import re
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any, Final, Literal

from finetune_operator.api.labels import PROFILE
from finetune_operator.api.pod_template import SIZED_STAGES
from finetune_operator.api.stage_status import MAX_ENDED_PODS, EndedPod, PodEndCause
from finetune_operator.manifests.answer_engine import ANSWER_CONTAINERS, ANSWERS_CONTAINER
from finetune_operator.manifests.jobs import IGNORED_EXIT_CODES, TRAINER_CONTAINER
from finetune_operator.observe.pod_status import (
    Trouble,
    condition,
    container_state,
    creation_time,
    describe_pod,
    has_condition,
    has_ended,
    index_of,
    init_statuses,
    parse_time,
    quote,
    stage_of,
    trainer_container,
)
from finetune_operator.plan import Manifest
from finetune_operator.stage_table import find_row
from finetune_operator.status.reasons import Reason
from finetune_trainer.contract.vocabulary import ExitCode

NODE_REPORT_TIMEOUT: Final = timedelta(seconds=30)
"""Time after the deadline of a pod's deletion until its node counts as silent. A node ends pods at their
deadline, by force if necessary, and reports the end within seconds."""

OUT_OF_SERVICE: Final = "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute"
"""Taint with which Kubernetes ends the pods of a node that is not ready. Force deletion of a pod does not
help, because its Job creates no replacement before the pod counts as failed."""


def node_trouble(pod: Manifest, whose: str, now: datetime) -> Trouble | None:
    """The problem that the pod's node does not respond; None if it does.

    Args:
        pod: the pod.
        whose: the pod in the message, such as "the train pod".
        now: the time.
    """
    metadata, node = pod["metadata"], pod["spec"].get("nodeName", "")
    if has_ended(pod) or not node:
        return None
    name, deadline = metadata["name"], metadata.get("deletionTimestamp")
    if deadline is not None:
        if not is_overdue(pod, now):
            return None
        return Trouble(
            Reason.NODE_LOST,
            f"{whose} {name} should have ended by {deadline}, but node {node} does not confirm it. If the"
            f" node is gone for good: kubectl delete node {node}. If it is shut down: kubectl taint node"
            f" {node} {OUT_OF_SERVICE}. This continues within two minutes after that, or when the node"
            " responds",
        )
    if pod.get("status", {}).get("phase") == "Unknown" or _is_unreachable(pod):
        return Trouble(
            Reason.NODE_LOST,
            f"node {node} of {whose} {name} does not respond: kubectl describe node {node} shows since when."
            " This continues when the node responds. After about five minutes Kubernetes deletes the pod",
        )
    return None


def is_overdue(pod: Manifest, now: datetime) -> bool:
    """Whether the pod is terminating, and its node has not confirmed its end in time."""
    deadline = pod["metadata"].get("deletionTimestamp")
    return deadline is not None and now - parse_time(deadline) >= NODE_REPORT_TIMEOUT


def seconds_until_overdue(pod: Manifest, now: datetime) -> float | None:
    """Seconds until a terminating pod counts as lost; None if it is not terminating."""
    deadline = pod["metadata"].get("deletionTimestamp")
    if deadline is None or has_ended(pod):
        return None
    return max(0.0, (parse_time(deadline) + NODE_REPORT_TIMEOUT - now).total_seconds()) + 1


def _is_unreachable(pod: Manifest) -> bool:
    """Whether the node controller has marked the pod as not ready, although its containers were ready.

    A closed readiness gate has the same conditions, so pods with gates are excluded.
    """
    if pod["spec"].get("readinessGates"):
        return False
    return has_condition(pod, "Ready", "False") and has_condition(pod, "ContainersReady", "True")


DISRUPTIONS: Final = {
    "PreemptionByScheduler": "was preempted by a pod of higher priority",
    "DeletionByTaintManager": "was removed from its node, which has a taint that it does not tolerate",
    "EvictionByEvictionAPI": "was evicted through the API, for example by kubectl drain",
    "DeletionByPodGC": "was deleted because its node is gone",
    "TerminationByKubelet": "was ended by its node",
}
"""Reasons of the condition DisruptionTarget: the cluster ended the pod."""

EXIT_CODE_TEXTS: Final = {
    126: "its command cannot be run: check images.trainer of the ComputeProfile",
    127: "its command cannot be run: check images.trainer of the ComputeProfile",
    137: "it was killed by its node, or because it did not end within its grace period",
    139: "it crashed in native code",
    143: "it received SIGTERM",
}
"""Meaning of the exit codes of processes that left no message."""

SIDECAR_TIMEOUT: Final = timedelta(seconds=60)
"""Time after the end of the trainer until a container that still runs counts as a problem."""

POD_LIMIT_EXCEEDED: Final = re.compile(r"exceeds the|exceeded its local ephemeral storage limit")
"""Message of the kubelet about a pod that exceeded its own limit, so its node lacks nothing."""


def deciding_pod(pods: Iterable[Manifest]) -> Manifest | None:
    """The pod whose end explains the end of its Job, from pods that are sorted newest first.

    It is the newest pod that has ended. If several pods work together, it is the first pod that failed by
    itself in the newest attempt with such a pod, because other pods end as a consequence.
    """
    ended = [
        pod
        for pod in pods
        if "terminated" in container_state(pod) or pod.get("status", {}).get("phase") == "Failed"
    ]
    failed = [pod for pod in ended if index_of(pod) is not None and _has_failed(pod)]
    if not failed:
        return ended[0] if ended else None
    begun = min(creation_time(failed[0]), _find_end_time(failed[0]))
    return min((pod for pod in failed if _find_end_time(pod) >= begun), key=_find_end_time)


def _has_failed(pod: Manifest) -> bool:
    """Whether an ended pod failed, and not because of the cluster or another pod."""
    code = container_state(pod).get("terminated", {}).get("exitCode")
    return code not in {ExitCode.OK, *IGNORED_EXIT_CODES} and disruption(pod) is None


def _find_end_time(pod: Manifest) -> datetime:
    at = container_state(pod).get("terminated", {}).get("finishedAt")
    return parse_time(at) if at else creation_time(pod)


def find_failure(job: Manifest, pods: Iterable[Manifest]) -> Trouble:
    """The problem of a failed Job whose deciding pod left no result; pods are sorted newest first."""
    stage = stage_of(job)
    failed = condition(job, "Failed") or {}
    if failed.get("reason") == "DeadlineExceeded":
        return Trouble(
            Reason.DEADLINE_EXCEEDED,
            f"the {stage} Job exceeded an activeDeadlineSeconds that the operator did not set: remove what"
            " sets it, and create a new object",
        )
    pod = deciding_pod(pods)
    trouble = _end(stage, pod) if pod is not None else None
    return trouble or Trouble(
        Reason.STAGE_FAILED,
        f"the {stage} Job failed and its pods are gone. {failed.get('reason', '')}:"
        f" {quote(failed.get('message'))}",
    )


def disruption(pod: Manifest) -> str | None:
    """A text about the disruption that ended the pod, which is not a failure; None if there was none."""
    if not has_condition(pod, "DisruptionTarget", "True"):
        return None
    reason = (condition(pod, "DisruptionTarget") or {}).get("reason", "")
    how = DISRUPTIONS.get(reason, f"was ended by the cluster ({reason})")
    message = quote(pod["status"].get("message"))
    advice = f" ({eviction_advice(pod, stage_of(pod))})" if pod["status"].get("reason") == "Evicted" else ""
    return f"{how}: {message}{advice}" if message else how


def eviction_advice(pod: Manifest, stage: str) -> str:
    """Advice against another eviction like this one.

    Args:
        pod: the pod that its node evicted.
        stage: the name of the pod's entry in `resources` of a ComputeProfile.
    """
    message = pod["status"].get("message") or ""
    disk = _field(pod, stage, "ephemeralStorage")
    if POD_LIMIT_EXCEEDED.search(message):
        where = f": {disk}" if disk and '"shared-memory"' not in message else ""
        return f"raise or remove that limit{where}"
    if "ephemeral" in message:
        raised = f"raise {disk} to what it uses, or " if disk else ""
        return f"{raised}use nodes with more disk"
    if "memory" in message:
        return f"raise {_field(pod, stage, 'memory') or 'its memory'} to what it uses"
    return "kubectl describe node shows what the node lacks"


def sidecar_trouble(pod: Manifest, now: datetime) -> Trouble | None:
    """An injected container that still runs after the trainer of its pod has ended; None if there is none."""
    running = _running_sidecar(pod)
    if running is None:
        return None
    name, since = running
    if now - since < SIDECAR_TIMEOUT:
        return None
    metadata = pod["metadata"]
    return Trouble(
        Reason.POD_NOT_ENDING,
        f"the trainer of {describe_pod(stage_of(pod), pod)} has ended, but container {name}, which the"
        f" platform adds to the pod, still runs, so the Job does not continue: make {name} a native"
        " sidecar (an init container with restartPolicy Always), or make it end with the trainer; then"
        f" kubectl delete pod {metadata['name']} -n {metadata.get('namespace', '')}",
    )


def until_sidecar_trouble(pod: Manifest, now: datetime) -> float | None:
    """Seconds until a container that runs next to an ended trainer counts as a problem; None if none runs."""
    running = _running_sidecar(pod)
    if running is None:
        return None
    return max(0.0, (running[1] + SIDECAR_TIMEOUT - now).total_seconds()) + 1


def _running_sidecar(pod: Manifest) -> tuple[str, datetime] | None:
    """A container that runs next to an ended trainer, and the trainer's end; None in a terminating pod."""
    ended_at = container_state(pod).get("terminated", {}).get("finishedAt")
    if ended_at is None or has_ended(pod) or "deletionTimestamp" in pod["metadata"]:
        return None
    for status in pod["status"]["containerStatuses"]:
        if status["name"] != TRAINER_CONTAINER and "running" in status.get("state", {}):
            return status["name"], parse_time(ended_at)
    return None


def _end(stage: str, pod: Manifest) -> Trouble | None:
    """The problem of a failed pod, if its status shows it."""
    status, ended = pod["status"], container_state(pod).get("terminated", {})
    if ended.get("reason") == "OOMKilled":
        return _out_of_memory(stage, pod)
    if status.get("reason") == "Evicted":
        return _evicted(stage, pod)
    if status.get("reason") == "DeadlineExceeded":
        return Trouble(
            Reason.DEADLINE_EXCEEDED,
            f"{describe_pod(stage, pod)} exceeded an activeDeadlineSeconds that the operator did not set:"
            " remove what sets it",
        )
    if ended.get("reason") in {"StartError", "ContainerCannotRun"}:
        return Trouble(
            Reason.POD_NOT_STARTING,
            f"image {trainer_container(pod).get('image')} of {describe_pod(stage, pod)} cannot be run, check"
            f" images.trainer of the ComputeProfile: {quote(ended.get('message'))}",
        )
    if ended.get("exitCode"):
        return _exit(stage, pod, ended)
    return _init_failure(stage, pod) or _rejected(stage, pod)


def _exit(stage: str, pod: Manifest, ended: dict[str, Any]) -> Trouble:
    code = ended["exitCode"]
    message = quote(ended.get("message")) or EXIT_CODE_TEXTS.get(code) or "it left no message"
    return Trouble(
        Reason.STAGE_FAILED,
        f"{describe_pod(stage, pod)} ended with exit code {code}: {message}"
        f" (kubectl logs {pod['metadata']['name']})",
    )


def _init_failure(stage: str, pod: Manifest) -> Trouble | None:
    """The failure of an init container."""
    for status in init_statuses(pod):
        ended = status.get("state", {}).get("terminated") or {}
        if ended.get("exitCode") and status["name"] in ANSWER_CONTAINERS:
            return _answers_failure(stage, pod, status["name"], ended)
        if ended.get("exitCode"):
            name = status["name"]
            return Trouble(
                Reason.POD_NOT_STARTING,
                f"init container {name}, which the platform adds to the pod, ended with exit code"
                f" {ended['exitCode']}: {quote(ended.get('message')) or 'it left no message'}"
                f" (kubectl logs {pod['metadata']['name']} -c {name})",
            )
    return None


def _answers_failure(stage: str, pod: Manifest, name: str, ended: dict[str, Any]) -> Trouble:
    """The failure of a container in which a serving engine generates answers. It reports its own errors."""
    whose = f"container {name} of {describe_pod(stage, pod)}"
    if ended.get("reason") == "OOMKilled":
        resources = "serve" if name == ANSWERS_CONTAINER else stage
        return Trouble(
            Reason.OUT_OF_MEMORY,
            f"{whose} was killed for using more memory than its limit: raise"
            f" {_field(pod, resources, 'memory') or 'its memory limit'}",
        )
    code = ended["exitCode"]
    message = quote(ended.get("message")) or EXIT_CODE_TEXTS.get(code) or "it left no message"
    return Trouble(
        Reason.STAGE_FAILED,
        f"{whose} ended with exit code {code}: {message} (kubectl logs {pod['metadata']['name']} -c {name})",
    )


def _rejected(stage: str, pod: Manifest) -> Trouble | None:
    """A pod that its node rejected before any container ran."""
    status = pod["status"]
    if status.get("phase") != "Failed" or not status.get("reason"):
        return None
    return Trouble(
        Reason.POD_NOT_STARTING,
        f"node {pod['spec'].get('nodeName', '')} rejected {describe_pod(stage, pod)}. {status['reason']}:"
        f" {quote(status.get('message'))} (kubectl describe node shows its free resources)",
    )


def _evicted(stage: str, pod: Manifest) -> Trouble:
    message = quote(pod["status"].get("message"))
    return Trouble(
        Reason.EVICTED, f"{describe_pod(stage, pod)} was evicted: {message} ({eviction_advice(pod, stage)})"
    )


def _out_of_memory(stage: str, pod: Manifest) -> Trouble:
    limit = trainer_container(pod).get("resources", {}).get("limits", {}).get("memory", "unknown")
    row = find_row(stage)
    smaller = (
        ", or lower hyperparameters.batchSize or maxSequenceLength in a new FineTuneJob"
        if row is not None and row.uses_devices
        else ""
    )
    return Trouble(
        Reason.OUT_OF_MEMORY,
        f"{describe_pod(stage, pod)} was killed for using more memory than its limit of {limit}: raise"
        f" {_field(pod, stage, 'memory') or 'its memory limit'}{smaller}",
    )


def _field(pod: Manifest, stage: str, name: str) -> str | None:
    """The field of a ComputeProfile that sets this resource of the stage; None if no profile sets it."""
    profile = pod["metadata"].get("labels", {}).get(PROFILE)
    if profile is None or stage not in SIZED_STAGES:
        return None
    return f"resources.{name} for {stage} in pods of ComputeProfile {profile}"


PodOutcome = Literal["Succeeded", "OutOfMemory"] | PodEndCause


def add_ended_pods(known: tuple[EndedPod, ...], pods: Iterable[Manifest]) -> tuple[EndedPod, ...]:
    """The known ends, and those of the pods that ran and did not succeed, in the order of their ends.

    If there are too many, ends that other ends caused are left out first, then the oldest. The result with
    the same pods again is the same.
    """
    ends = {each.pod: each for each in known}
    for pod in pods:
        end = _read_end(pod)
        if end is not None:
            ends.setdefault(end.pod, end)
    kept = sorted(ends.values(), key=lambda each: (each.cause != "PeerLost", each.at, each.pod))
    return tuple(sorted(kept[-MAX_ENDED_PODS:], key=lambda each: (each.at, each.pod)))


def find_end_cause(pod: Manifest) -> PodOutcome:
    """How a pod ended. A pod that is deleted before its trainer succeeds is preempted."""
    ended = container_state(pod).get("terminated", {})
    code = ended.get("exitCode")
    if code == ExitCode.OK:
        return "Succeeded"
    if disruption(pod) is not None or code == ExitCode.PREEMPTED_SAVED:
        return "Preemption"
    if code == ExitCode.PEER_LOST:
        return "PeerLost"
    if ended.get("reason") == "OOMKilled":
        return "OutOfMemory"
    return "Preemption" if "deletionTimestamp" in pod["metadata"] else "Failure"


def _read_end(pod: Manifest) -> EndedPod | None:
    finished_at = container_state(pod).get("terminated", {}).get("finishedAt")
    outcome = find_end_cause(pod)
    if not finished_at or outcome == "Succeeded":
        return None
    cause: PodEndCause = "Failure" if outcome == "OutOfMemory" else outcome
    return EndedPod(pod=pod["metadata"]["uid"], at=parse_time(finished_at), cause=cause)
