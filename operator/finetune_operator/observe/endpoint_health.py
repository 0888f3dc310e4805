# SPDX-License-Identifier: Apache-2.0
"""Health of an endpoint as conditions: whether a replica is available, and whether its image is too old."""

import re
from datetime import datetime
from typing import Final, Literal, NamedTuple

from finetune_operator.api.inference_deployment import InferenceDeployment
from finetune_operator.api.meta import Condition
from finetune_operator.manifests.endpoint import FETCH_CONTAINER
from finetune_operator.observe.deployments import ServingTrouble
from finetune_operator.plan import Manifest
from finetune_operator.status.conditions import drop_conditions, set_condition
from finetune_operator.status.reasons import ConditionType, Reason

VERSION: Final = re.compile(r"^v?([0-9]+(?:\.[0-9]+)+)(?![0-9A-Za-z])")

Status = Literal["True", "False", "Unknown"]


class EndpointHealth(NamedTuple):
    """Status, reason and message of a condition."""

    status: Status
    reason: Reason
    message: str


def availability(
    endpoint: InferenceDeployment, revision: str, deployment: Manifest | None, trouble: ServingTrouble | None
) -> EndpointHealth:
    """Whether at least one replica of the serving revision is ready."""
    replicas = endpoint.spec.replicas
    ready: int = (deployment or {}).get("status", {}).get("readyReplicas", 0)
    if not revision:
        return EndpointHealth("False", Reason.NO_REPLICA_READY, "no revision has served yet")
    if ready:
        return EndpointHealth("True", Reason.AVAILABLE, f"revision {revision} has ready replicas")
    if replicas == 0:
        return EndpointHealth(
            "False", Reason.SCALED_TO_ZERO, "spec.replicas is 0: raise it to serve requests"
        )
    why = trouble.message if trouble is not None else "its pods are starting, or fail their readiness probe"
    return EndpointHealth(
        "False", Reason.NO_REPLICA_READY, f"0 of {replicas} replicas of revision {revision} are ready: {why}"
    )


def image_age(deployment: Manifest, floor: str) -> EndpointHealth:
    """Whether the version in the tag of the trainer image is at least `floor`."""
    image = _trainer_image(deployment)
    version = _version(image.rpartition("/")[2].partition("@")[0].partition(":")[2])
    name = deployment["metadata"]["name"]
    advice = (
        "set spec.restartedAt to the current time to start a revision with the operator's image; if the"
        " ComputeProfile sets images.trainer, raise that first"
    )
    if version is None:
        return EndpointHealth(
            "Unknown",
            Reason.VERSION_UNKNOWN,
            f"revision {name} serves with image {image}, whose tag is not a version, so it is unknown whether"
            f" it is older than the security floor {floor}: if it is, {advice}",
        )
    if version < (_version(floor) or ()):
        return EndpointHealth(
            "False",
            Reason.BELOW_FLOOR,
            f"revision {name} serves with image {image}, older than the security floor {floor}: {advice}",
        )
    return EndpointHealth(
        "True", Reason.NOT_BELOW_FLOOR, f"image {image} is not older than the security floor {floor}"
    )


def set_health(
    conditions: tuple[Condition, ...],
    type_: ConditionType,
    health: EndpointHealth | None,
    *,
    generation: int,
    now: datetime,
) -> tuple[Condition, ...]:
    """The conditions with this one set to `health`; without it if `health` is None."""
    if health is None:
        return drop_conditions(conditions, type_)
    return set_condition(
        conditions,
        type_,
        health.status,
        health.reason,
        health.message,
        generation=generation,
        now=now,
    )


def _trainer_image(deployment: Manifest) -> str:
    """The image of the init container, whichever engine serves."""
    containers = deployment["spec"].get("template", {}).get("spec", {}).get("initContainers", ())
    image: str = next((each["image"] for each in containers if each["name"] == FETCH_CONTAINER), "")
    return image


def _version(text: str) -> tuple[int, ...] | None:
    """Numbers of a version without trailing zeros and suffixes such as -rc1; None if it is not a version."""
    found = VERSION.match(text)
    if found is None:
        return None
    numbers = [int(part) for part in found[1].split(".")]
    while len(numbers) > 1 and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
