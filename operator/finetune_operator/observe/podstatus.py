# SPDX-License-Identifier: Apache-2.0
"""Conditions and container statuses of pods, for stages and endpoints."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from finetune_operator.manifests.labels import STAGE
from finetune_operator.manifests.podtemplate import CONTAINER
from finetune_operator.plan import Manifest
from finetune_operator.status.conditions import shortened

MAX_QUOTED_CHARACTERS: Final = 400
"""Limit of a message of another component that a condition repeats, in characters."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """A problem as reason and message; `expected` if it needs no user action, such as a queue."""

    reason: str
    message: str
    expected: bool = False
    recheck_after_seconds: float | None = None
    """Seconds until the diagnosis may differ even if nothing changes."""


MAX_IMAGE_CHARACTERS: Final = 512
"""Limit of an image's name in the status, in characters."""


def quoted(text: str | None) -> str:
    """A message of another component, shortened for use in a condition."""
    return shortened((text or "").strip(), MAX_QUOTED_CHARACTERS)


def condition(manifest: Manifest, type_: str) -> dict[str, Any] | None:
    """The condition of this type of a pod or a Job."""
    conditions = manifest.get("status", {}).get("conditions") or ()
    return next((each for each in conditions if each.get("type") == type_), None)


def has_condition(manifest: Manifest, type_: str, status: str) -> bool:
    """Whether the condition exists and has this status."""
    found = condition(manifest, type_)
    return found is not None and found.get("status") == status


def trainer_container(pod: Manifest) -> dict[str, Any]:
    """Spec of the trainer's container, not of containers that a platform injects."""
    containers = pod["spec"]["containers"]
    found: dict[str, Any] = next((each for each in containers if each["name"] == CONTAINER), {})
    return found


def init_statuses(pod: Manifest) -> Iterator[dict[str, Any]]:
    """Statuses of the init containers in the order in which they run."""
    yield from pod.get("status", {}).get("initContainerStatuses") or ()


def container_statuses(pod: Manifest) -> Iterator[dict[str, Any]]:
    """Statuses of all containers in the order in which they start."""
    yield from init_statuses(pod)
    yield from pod.get("status", {}).get("containerStatuses") or ()


def stage_of(job: Manifest) -> str:
    """The stage of a Job or pod, from its label."""
    stage: str = job["metadata"].get("labels", {}).get(STAGE, "stage")
    return stage


def has_ended(pod: Manifest) -> bool:
    """Whether the pod has ended, so that no container of it will run again."""
    return pod.get("status", {}).get("phase") in {"Succeeded", "Failed"}


def has_started(pod: Manifest) -> bool:
    """Whether a container of the pod, also an init container, runs or has run."""
    return has_ended(pod) or any(map(_has_run, container_statuses(pod)))


def _has_run(status: dict[str, Any]) -> bool:
    state = status.get("state", {})
    return bool(
        status.get("restartCount") or status.get("lastState") or "running" in state or "terminated" in state
    )


def image_by_digest(pods: Iterable[Manifest]) -> str | None:
    """The trainer's image of the first of these pods with a digest, as `name@sha256:…`.

    None if no kubelet reports a digest, for example for an image that was built on its node.
    """
    for pod in pods:
        for status in pod.get("status", {}).get("containerStatuses") or ():
            image = str(status.get("imageID", "")).removeprefix("docker-pullable://")
            if status.get("name") == CONTAINER and "@sha256:" in image and len(image) <= MAX_IMAGE_CHARACTERS:
                return image
    return None
