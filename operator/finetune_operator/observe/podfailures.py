# SPDX-License-Identifier: Apache-2.0
"""Problems of a stage's pods that failed or do not end, with advice."""

import re
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any, Final

from finetune_operator.api.pod_template import SIZED_STAGES
from finetune_operator.manifests.answerpod import ANSWER_CONTAINERS, ANSWERS_CONTAINER
from finetune_operator.manifests.jobs import IGNORED_EXIT_CODES
from finetune_operator.manifests.labels import PROFILE
from finetune_operator.manifests.podtemplate import CONTAINER
from finetune_operator.observe.peerpods import describe_pod, index_of
from finetune_operator.observe.podstatus import (
    Trouble,
    condition,
    has_condition,
    has_ended,
    init_statuses,
    quoted,
    stage_of,
    trainer_container,
)
from finetune_operator.observe.stagetimes import container_state, parse_time
from finetune_operator.plan import Manifest
from finetune_operator.stagetable import find_row
from finetune_operator.status.reasons import Reason
from finetune_trainer.contract.vocabulary import ExitCode

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
    begun = min(_created(failed[0]), _ended(failed[0]))
    return min((pod for pod in failed if _ended(pod) >= begun), key=_ended)


def _has_failed(pod: Manifest) -> bool:
    """Whether an ended pod failed, and not because of the cluster or another pod."""
    code = container_state(pod).get("terminated", {}).get("exitCode")
    return code not in {ExitCode.OK, *IGNORED_EXIT_CODES} and disruption(pod) is None


def _created(pod: Manifest) -> datetime:
    return parse_time(pod["metadata"]["creationTimestamp"])


def _ended(pod: Manifest) -> datetime:
    at = container_state(pod).get("terminated", {}).get("finishedAt")
    return parse_time(at) if at else _created(pod)


def failure(job: Manifest, pods: Iterable[Manifest]) -> Trouble:
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
        f" {quoted(failed.get('message'))}",
    )


def disruption(pod: Manifest) -> str | None:
    """A text about the disruption that ended the pod, which is not a failure; None if there was none."""
    if not has_condition(pod, "DisruptionTarget", "True"):
        return None
    reason = (condition(pod, "DisruptionTarget") or {}).get("reason", "")
    how = DISRUPTIONS.get(reason, f"was ended by the cluster ({reason})")
    message = quoted(pod["status"].get("message"))
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
        if status["name"] != CONTAINER and "running" in status.get("state", {}):
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
            f" images.trainer of the ComputeProfile: {quoted(ended.get('message'))}",
        )
    if ended.get("exitCode"):
        return _exit(stage, pod, ended)
    return _init_failure(stage, pod) or _rejected(stage, pod)


def _exit(stage: str, pod: Manifest, ended: dict[str, Any]) -> Trouble:
    code = ended["exitCode"]
    message = quoted(ended.get("message")) or EXIT_CODE_TEXTS.get(code) or "it left no message"
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
                f" {ended['exitCode']}: {quoted(ended.get('message')) or 'it left no message'}"
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
    message = quoted(ended.get("message")) or EXIT_CODE_TEXTS.get(code) or "it left no message"
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
        f" {quoted(status.get('message'))} (kubectl describe node shows its free resources)",
    )


def _evicted(stage: str, pod: Manifest) -> Trouble:
    message = quoted(pod["status"].get("message"))
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
