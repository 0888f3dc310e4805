"""What Kubernetes says of a pod, read in the same way for stages and for endpoints."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from finetune_operator.manifests.labels import STAGE
from finetune_operator.manifests.podtemplate import CONTAINER
from finetune_operator.plan import Manifest
from finetune_operator.status.conditions import shortened

MAX_QUOTED_CHARACTERS: Final = 400
"""Characters of another component's message that are repeated."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """A reason and a message; `expected` for what needs nobody to act, such as a queue."""

    reason: str
    message: str
    expected: bool = False
    recheck_after_seconds: float | None = None
    """Seconds until the answer may be another although nothing changes."""


MAX_IMAGE_CHARACTERS: Final = 512
"""Characters of an image's name that the status takes."""


def quoted(text: str | None) -> str:
    """Another component's message, short enough to be repeated in ours."""
    return shortened((text or "").strip(), MAX_QUOTED_CHARACTERS)


def condition(manifest: Manifest, type_: str) -> dict[str, Any] | None:
    """The condition of this type of a pod or a Job."""
    conditions = manifest.get("status", {}).get("conditions") or ()
    return next((each for each in conditions if each.get("type") == type_), None)


def has_condition(manifest: Manifest, type_: str, status: str) -> bool:
    """Whether the condition is there and has this status; one that is not there has none."""
    found = condition(manifest, type_)
    return found is not None and found.get("status") == status


def trainer_container(pod: Manifest) -> dict[str, Any]:
    """The spec of the trainer's container, whatever a platform injects beside it."""
    containers = pod["spec"]["containers"]
    found: dict[str, Any] = next((each for each in containers if each["name"] == CONTAINER), {})
    return found


def init_statuses(pod: Manifest) -> Iterator[dict[str, Any]]:
    """Statuses of the init containers, in the order in which they run."""
    yield from pod.get("status", {}).get("initContainerStatuses") or ()


def container_statuses(pod: Manifest) -> Iterator[dict[str, Any]]:
    """Statuses of all containers, in the order in which they start."""
    yield from init_statuses(pod)
    yield from pod.get("status", {}).get("containerStatuses") or ()


def stage_of(job: Manifest) -> str:
    """The stage that a Job carries out."""
    stage: str = job["metadata"].get("labels", {}).get(STAGE, "stage")
    return stage


def has_ended(pod: Manifest) -> bool:
    """Whether no container of the pod runs any more, or ever will."""
    return pod.get("status", {}).get("phase") in {"Succeeded", "Failed"}


def image_by_digest(pods: Iterable[Manifest]) -> str | None:
    """The image that the trainer of the first of these pods ran, as `name@sha256:…`; None while no kubelet
    says so, as for an image that was built on its node."""
    for pod in pods:
        for status in pod.get("status", {}).get("containerStatuses") or ():
            image = str(status.get("imageID", "")).removeprefix("docker-pullable://")
            if status.get("name") == CONTAINER and "@sha256:" in image and len(image) <= MAX_IMAGE_CHARACTERS:
                return image
    return None
