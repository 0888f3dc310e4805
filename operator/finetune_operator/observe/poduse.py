# SPDX-License-Identifier: Apache-2.0
"""When a pod uses how many devices of which ComputeProfile."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from math import ceil

from finetune_operator.api.devices import MAX_DEVICES
from finetune_operator.api.podresources import quantity_value
from finetune_operator.manifests.labels import PROFILE, STAGE
from finetune_operator.manifests.serving import ENGINE_CONTAINER
from finetune_operator.observe.devicepods import labeled_devices
from finetune_operator.observe.podstatus import container_statuses, has_ended
from finetune_operator.observe.stagetimes import container_span
from finetune_operator.plan import Manifest


@dataclass(frozen=True, slots=True)
class PodUse:
    """One pod with devices, from the start of its first container to the end of its last one."""

    namespace: str
    profile: str
    started_at: datetime
    ended_at: datetime | None
    """None: it runs."""
    labeled: int | None
    """Devices by the pod's label; None for a pod of an endpoint without it."""
    engine_requests: Mapping[str, str]
    """Requests of such a pod's engine by resource."""

    def devices(self, resource: str) -> int:
        """Number of devices, rounded up. `resource` is that of the profile's devices."""
        if self.labeled is not None:
            return self.labeled
        return min(MAX_DEVICES, ceil(quantity_value(self.engine_requests.get(resource, "0"))))


def use_of(pod: Manifest) -> PodUse | None:
    """The use of devices by a pod; None before its first container starts, and for pods without devices."""
    metadata = pod["metadata"]
    labels: dict[str, str] = metadata.get("labels", {})
    profile, devices = labels.get(PROFILE), labeled_devices(pod)
    if not profile or (devices is None and STAGE in labels):
        return None
    spans = [
        span
        for status in container_statuses(pod)
        if (span := container_span(status.get("state", {}), pod)) is not None
    ]
    if not spans:
        return None
    return PodUse(
        namespace=metadata["namespace"],
        profile=profile,
        started_at=min(start for start, _ in spans),
        ended_at=max(end or start for start, end in spans) if has_ended(pod) else None,
        labeled=devices,
        engine_requests={} if devices is not None else _engine_requests(pod),
    )


def _engine_requests(pod: Manifest) -> dict[str, str]:
    engine: Manifest = next(
        (each for each in pod["spec"]["containers"] if each["name"] == ENGINE_CONTAINER), {}
    )
    resources = engine.get("resources", {})
    return {**resources.get("limits", {}), **resources.get("requests", {})}
