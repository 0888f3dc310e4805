# SPDX-License-Identifier: Apache-2.0
"""Fields of profiles and endpoints in the hash of a revision's name, chosen so that no upgrade starts one."""

from datetime import UTC
from typing import Any, Final

from finetune_operator.api.computeprofile import ComputeProfileSpec
from finetune_operator.api.devices import Devices
from finetune_operator.api.inferencedeployment import InferenceDeployment
from finetune_operator.api.meta import Model
from finetune_operator.api.podresources import PodResources
from finetune_operator.api.serving import Serving
from finetune_operator.api.toleration import Toleration

ALWAYS: Final[dict[type[Model], frozenset[str]]] = {
    ComputeProfileSpec: frozenset(
        {"devices", "node_selector", "tolerations", "runtime_class_name", "engine"}
    ),
    Devices: frozenset({"resource", "max"}),
    Toleration: frozenset({"key", "operator", "value", "effect", "toleration_seconds"}),
}
"""Fields that are hashed even with their default value, because existing names include them."""

EMPTY: Final[tuple[Any, ...]] = ({}, [])
"""Values of a setting that is given and yet chooses nothing."""

LATER: Final = frozenset[str]()
"""Later fields of a profile's spec for the placement of an endpoint's pods; hashed only if set."""


def hashed_placement(spec: ComputeProfileSpec) -> dict[str, Any]:
    """Placement of an endpoint's pods, as JSON types."""
    names = ALWAYS[ComputeProfileSpec] | LATER
    return {name: value for name, value in hashed(spec).items() if name in names}


def hashed_resources(resources: PodResources | None) -> dict[str, Any] | None:
    """Resource requests of the server's container, by wire names."""
    if resources is None:
        return None
    return resources.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)


def hashed(part: Model) -> dict[str, Any]:
    """The part as JSON types. Fields with their default value are left out unless they are in `ALWAYS`."""
    always = ALWAYS.get(type(part), frozenset())
    return {
        name: _value(getattr(part, name))
        for name, field in type(part).model_fields.items()
        if name in always or getattr(part, name) != field.get_default(call_default_factory=True)
    }


def _value(value: Any) -> Any:
    if isinstance(value, Model):
        return hashed(value)
    if isinstance(value, tuple):
        return [_value(item) for item in value]
    return value


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
