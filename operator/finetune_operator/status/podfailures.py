"""Why a stage's pod does not start, or how it ended, in words that say what to do."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from finetune_operator.build.labels import PROFILE, STAGE
from finetune_operator.build.pods import CONTAINER
from finetune_operator.plan import Manifest
from finetune_operator.status.conditions import shortened
from finetune_operator.status.reasons import Reason
from finetune_operator.status.stagetimes import container_state, instant

IMAGE_REASONS: Final = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
)
SLOW_START: Final = timedelta(seconds=120)
"""A scheduled pod that has not started by then is worth a look: usually a volume that cannot be mounted."""
NO_POD: Final = timedelta(seconds=60)
"""A Job without a pod by then is usually refused by quota or admission; only its events say so."""

MISSING_SECRET: Final = re.compile(r'secrets? "([^"]+)" not found')
QUOTED_TEXT: Final = 400
"""Characters of another component's message that are repeated."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """A reason and a message; `expected` for what needs nobody to act, such as a queue."""

    reason: str
    message: str
    expected: bool = False
    look_again: float | None = None
    """Seconds until the answer may be another although nothing changes."""


def waiting(job: Manifest, pod: Manifest | None, now: datetime) -> Trouble:
    """Why the Job's newest pod, if it has one, is not running yet."""
    stage, name = _stage(job), job["metadata"]["name"]
    if pod is None:
        return _without_pod(job, now)
    pod_name = pod["metadata"]["name"]
    state = container_state(pod).get("waiting", {})
    reason, message = state.get("reason", ""), shortened(state.get("message", ""), QUOTED_TEXT)
    if reason in IMAGE_REASONS:
        image = _container(pod).get("image")
        return Trouble(
            Reason.IMAGE_UNAVAILABLE,
            f"image {image} of the {stage} pod cannot be pulled: check its name and registry, and that the"
            f" nodes may pull it. {reason}: {message}",
        )
    if reason in {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}:
        missing = MISSING_SECRET.search(state.get("message", ""))
        if missing:
            return Trouble(
                Reason.SECRET_NOT_FOUND,
                f"Secret {missing[1]} does not exist in namespace {pod['metadata'].get('namespace', '')}:"
                " create it with type finetune.dev/credentials, an endpoint key, and the credentials for it",
            )
        return Trouble(
            Reason.POD_NOT_STARTING, f"the {stage} pod {pod_name} does not start. {reason}: {message}"
        )
    unscheduled = _condition(pod, "PodScheduled")
    if unscheduled is not None and unscheduled.get("status") == "False":
        return _unschedulable(job, unscheduled)
    if unscheduled is not None:
        since = instant(unscheduled.get("lastTransitionTime") or pod["metadata"]["creationTimestamp"])
        if now - since >= SLOW_START:
            return Trouble(
                Reason.POD_NOT_STARTING,
                f"the {stage} pod {pod_name} has a node but has not started: a volume may not mount or the"
                f" image may be large; kubectl describe pod {pod_name} shows why",
            )
        return Trouble(
            Reason.QUEUED,
            f"the {stage} pod is starting",
            expected=True,
            look_again=(SLOW_START - (now - since)).total_seconds() + 1,
        )
    return Trouble(Reason.QUEUED, f"the {stage} pod of Job {name} waits for a node", expected=True)


def _without_pod(job: Manifest, now: datetime) -> Trouble:
    stage, name = _stage(job), job["metadata"]["name"]
    if job.get("spec", {}).get("suspend"):
        return Trouble(Reason.QUEUED, f"the {stage} Job waits in its queue for admission", expected=True)
    age = now - instant(job["metadata"]["creationTimestamp"])
    if age >= NO_POD and not job.get("status", {}).get("failed"):
        return Trouble(
            Reason.POD_NOT_STARTING,
            f"Job {name} has no pod: a quota or an admission policy may refuse it; kubectl describe job"
            f" {name} shows why",
        )
    return Trouble(
        Reason.QUEUED,
        f"the {stage} pod is being created",
        expected=True,
        look_again=max(0.0, (NO_POD - age).total_seconds()) + 1,
    )


def _unschedulable(job: Manifest, condition: dict[str, Any]) -> Trouble:
    stage = _stage(job)
    text = shortened(condition.get("message", ""), QUOTED_TEXT)
    profile = job["metadata"].get("labels", {}).get(PROFILE)
    advice = (
        "it starts when the resources are free; if they never are, check devices, resources and nodeSelector"
        f" of ComputeProfile {profile}"
        if profile
        else "it starts when the resources are free"
    )
    return Trouble(
        Reason.UNSCHEDULABLE, f"no node can take the {stage} pod yet: {text} ({advice})", expected=True
    )


def last_ended(pods: Iterable[Manifest]) -> Manifest | None:
    """Of pods, newest first, the newest that has ended: it decides what is said of its Job."""
    return next(
        (
            pod
            for pod in pods
            if "terminated" in container_state(pod) or pod.get("status", {}).get("phase") == "Failed"
        ),
        None,
    )


def failure(job: Manifest, pods: Iterable[Manifest]) -> Trouble:
    """Why a Job failed whose last pod left no result of its own; newest pod first."""
    stage = _stage(job)
    failed = _condition(job, "Failed") or {}
    if failed.get("reason") == "DeadlineExceeded":
        return Trouble(
            Reason.STAGE_FAILED,
            f"the {stage} Job ran past an activeDeadlineSeconds that was set on it from outside:"
            " remove what sets it",
        )
    pod = last_ended(pods)
    trouble = _end(stage, pod) if pod is not None else None
    return trouble or Trouble(
        Reason.STAGE_FAILED,
        f"the {stage} Job failed and its pods are gone. {failed.get('reason', '')}:"
        f" {shortened(failed.get('message', ''), QUOTED_TEXT)}",
    )


def _end(stage: str, pod: Manifest) -> Trouble | None:
    """How a pod ended badly, if it says so."""
    status, ended = pod["status"], container_state(pod).get("terminated", {})
    if ended.get("reason") == "OOMKilled":
        return _out_of_memory(stage, pod)
    if status.get("reason") == "Evicted":
        return Trouble(
            Reason.STAGE_FAILED,
            f"the {stage} pod was evicted: {shortened(status.get('message', ''), QUOTED_TEXT)}",
        )
    if not ended.get("exitCode"):
        return None
    said = shortened(ended.get("message", "").strip(), QUOTED_TEXT)
    return Trouble(
        Reason.STAGE_FAILED,
        f"the {stage} pod ended with exit code {ended['exitCode']}: {said or 'it left no message'}"
        f" (kubectl logs {pod['metadata']['name']})",
    )


def is_disrupted(pod: Manifest) -> bool:
    """Whether the cluster took the pod away, which is never the run's fault and never counts."""
    disrupted = _condition(pod, "DisruptionTarget")
    return disrupted is not None and disrupted.get("status") == "True"


def _out_of_memory(stage: str, pod: Manifest) -> Trouble:
    limit = _container(pod).get("resources", {}).get("limits", {}).get("memory", "unknown")
    profile = pod["metadata"].get("labels", {}).get(PROFILE)
    where = f"resources.{stage}.memory of ComputeProfile {profile}" if profile else "its memory limit"
    smaller = (
        ", or lower hyperparameters.perDeviceBatchSize or maxSequenceLength in a new FineTuneJob"
        if stage in {"train", "evaluate"}
        else ""
    )
    return Trouble(
        Reason.OUT_OF_MEMORY,
        f"the {stage} pod was killed for using more memory than its limit of {limit}: raise {where}{smaller}",
    )


def _container(pod: Manifest) -> dict[str, Any]:
    containers = pod["spec"]["containers"]
    found: dict[str, Any] = next((each for each in containers if each["name"] == CONTAINER), {})
    return found


def _stage(job: Manifest) -> str:
    stage: str = job["metadata"].get("labels", {}).get(STAGE, "stage")
    return stage


def _condition(manifest: Manifest, type_: str) -> dict[str, Any] | None:
    conditions = manifest.get("status", {}).get("conditions") or ()
    return next((condition for condition in conditions if condition.get("type") == type_), None)
