# SPDX-License-Identifier: Apache-2.0
"""Fields of profiles and endpoints in the hash of a revision's name, chosen so that no upgrade starts one."""

from datetime import UTC
from typing import Any, Final

from finetune_operator.api.inference_deployment import InferenceDeployment
from finetune_operator.api.pod_template import PodTemplate
from finetune_operator.api.serving import Serving

HASHED: Final = frozenset(
    {"resources", "node_selector", "tolerations", "runtime_class_name", "resource_claims"}
)
"""Fields of the entries for `serve` whose edit starts a new revision: where its pods can run, and with
what."""

EMPTY: Final[tuple[Any, ...]] = ({}, [])
"""Values of a setting that is given and yet chooses nothing."""


def hashed_pods(pods: PodTemplate) -> dict[str, Any]:
    """The hashed fields of what holds for an endpoint's pods, by wire names. Defaults are left out."""
    return pods.model_dump(mode="json", by_alias=True, exclude_defaults=True, include=set(HASHED))


def hashed_choices(endpoint: InferenceDeployment, api_keys_secret: str | None) -> dict[str, Any]:
    """Choices of users that later releases added; part of the name only if set."""
    spec = endpoint.spec
    chosen: dict[str, Any] = {}
    if spec.restarted_at is not None:
        chosen["restartedAt"] = spec.restarted_at.astimezone(UTC).isoformat()
    if api_keys_secret is not None:
        chosen["apiKeysSecret"] = api_keys_secret
    serving = _serving(spec.serving)
    if serving:
        chosen["serving"] = serving
    queueing = {
        "queueName": spec.compute.queue_name,
        "workloadPriorityClass": spec.compute.workload_priority_class,
    }
    if any(queueing.values()):
        chosen["queueing"] = queueing
    if spec.availability is not None and spec.availability.topology_spread:
        chosen["topologySpread"] = [each.to_dict() for each in spec.availability.topology_spread]
    return chosen


def _serving(serving: Serving | None) -> dict[str, Any]:
    """Settings of the server that are set, by wire names. The Secret of the keys has an entry of its own."""
    if serving is None:
        return {}
    fields = serving.to_dict()
    fields.pop("apiKeysSecretRef", None)
    return {name: value for name, value in fields.items() if value not in EMPTY}
