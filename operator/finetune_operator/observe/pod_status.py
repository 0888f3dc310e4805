# SPDX-License-Identifier: Apache-2.0
"""What the status of a pod of a stage or endpoint says: conditions, containers, their times and their price.

The pods of an Indexed Job work together. Each index has one pod at a time.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.api.labels import STAGE
from finetune_operator.api.meta import Model
from finetune_operator.api.stage_status import Cost
from finetune_operator.manifests.answer_engine import ANSWER_CONTAINERS
from finetune_operator.manifests.jobs import TRAINER_CONTAINER
from finetune_operator.plan import Manifest
from finetune_operator.status.conditions import shorten

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


def quote(text: str | None) -> str:
    """A message of another component, shortened for use in a condition."""
    return shorten((text or "").strip(), MAX_QUOTED_CHARACTERS)


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
    found: dict[str, Any] = next((each for each in containers if each["name"] == TRAINER_CONTAINER), {})
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
            if (
                status.get("name") == TRAINER_CONTAINER
                and "@sha256:" in image
                and len(image) <= MAX_IMAGE_CHARACTERS
            ):
                return image
    return None


EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
"""The start that runtimes report of a container that they could not start."""
NOT_STARTED: Final = frozenset({"StartError", "ContainerCannotRun"})
"""Reasons of containers that ended without having run."""


def parse_time(text: str) -> datetime:
    """Parse a timestamp of the API server."""
    return datetime.fromisoformat(text)


def creation_time(obj: Manifest) -> datetime:
    """Time at which the API server created an object."""
    return parse_time(obj["metadata"]["creationTimestamp"])


def container_state(pod: Manifest) -> dict[str, Any]:
    """State of the trainer's container, not of containers that a platform injects.

    It has one of the keys `waiting`, `running` and `terminated`, or no key yet.
    """
    statuses = pod.get("status", {}).get("containerStatuses") or ()
    state: dict[str, Any] = next((s.get("state", {}) for s in statuses if s["name"] == TRAINER_CONTAINER), {})
    return state


def stage_states(pod: Manifest) -> list[dict[str, Any]]:
    """As `container_state`, of all containers of the stage, in the order in which they run."""
    statuses = pod.get("status", {}).get("initContainerStatuses") or ()
    before = [each.get("state", {}) for each in statuses if each["name"] in ANSWER_CONTAINERS]
    return [*before, container_state(pod)]


def container_span(state: Mapping[str, Any], pod: Manifest) -> tuple[datetime, datetime | None] | None:
    """Start and end of a container in this state. No end while it runs; None before it starts.

    The span is empty for a container that could not be started, and for one of a lost node, whose end is
    unknown. It begins after the creation of the pod, also if the clock of the node is behind.
    """
    part = state.get("running") or state.get("terminated") or {}
    if not part.get("startedAt"):
        return None
    started, created = parse_time(part["startedAt"]), creation_time(pod)
    start = max(started, created)
    if not part.get("finishedAt"):
        return start, start if has_ended(pod) else None
    end = max(parse_time(part["finishedAt"]), created)
    has_run = part.get("reason") not in NOT_STARTED and started > EPOCH
    return start if has_run else end, end


def running_span(pod: Manifest, now: datetime) -> tuple[datetime, datetime] | None:
    """Start and end of the stage's containers, `now` if they run; None before the first one starts."""
    spans = [span for state in stage_states(pod) if (span := container_span(state, pod)) is not None]
    if not spans:
        return None
    start, end = spans[0][0], spans[-1][1]
    return start, now if end is None else end


class Price(Model):
    """Price of the devices of a ComputeProfile."""

    per_device_hour: float | None = None
    currency: str | None = None

    @classmethod
    def of(cls, profile: ComputeProfile | None) -> "Price":
        """The price of a profile; without an amount if it has none, or does not exist."""
        if profile is None:
            return cls()
        return cls(
            per_device_hour=profile.spec.cost.price_per_device_hour, currency=profile.spec.cost.currency
        )


def add_cost(cost: Cost | None, device_seconds: float, price: Price) -> Cost | None:
    """The cost after these additional device seconds.

    The currency is that of the first profile with a price. Device time of a profile without a price or with
    another currency counts in `deviceSeconds`, but not in `amount`.
    """
    if device_seconds <= 0:
        return cost
    old = cost or Cost(currency=price.currency)
    amount, currency = old.amount, old.currency
    if price.per_device_hour is not None and (amount is None or price.currency == currency):
        currency = price.currency
        amount = round((amount or 0) + device_seconds / 3600 * price.per_device_hour, 6)
    total = round(old.device_seconds + device_seconds, 3)
    return old.model_copy(update={"device_seconds": total, "amount": amount, "currency": currency})


INDEX: Final = "batch.kubernetes.io/job-completion-index"
"""Annotation that the Job controller sets only on pods of an Indexed Job."""
NUMBER: Final = re.compile("[0-9]{1,9}")


def index_of(pod: Manifest) -> int | None:
    """Index of the pod in an Indexed Job; None for the pod of another Job."""
    index = (pod["metadata"].get("annotations") or {}).get(INDEX)
    # Users may edit it.
    return int(index) if index is not None and NUMBER.fullmatch(index) else None


def nodes_of(job: Manifest) -> int:
    """Number of pods that the Job runs at the same time."""
    spec = job.get("spec", {})
    return int(spec.get("completions", 1)) if spec.get("completionMode") == "Indexed" else 1


def describe_pod(stage: str, pod: Manifest) -> str:
    """A stage's pod for messages, with its index if the Job has several pods."""
    index = index_of(pod)
    return f"the {stage} pod" if index is None else f"{stage} pod {index}"


def newest_per_index(pods: Iterable[Manifest]) -> list[Manifest]:
    """The newest pod of each index, in the order of the indexes, from pods that are sorted newest first."""
    newest: dict[int, Manifest] = {}
    for pod in pods:
        newest.setdefault(index_of(pod) or 0, pod)
    return [newest[index] for index in sorted(newest)]
