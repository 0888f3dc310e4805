"""What of profiles and endpoints enters the name of a revision, so that no release rolls one by itself."""

from datetime import UTC
from typing import Any, Final

from finetune_operator.api.computeprofile import ComputeProfileSpec, Devices, Toleration
from finetune_operator.api.inferencedeployment import InferenceDeployment
from finetune_operator.api.meta import Model
from finetune_operator.api.podresources import PodResources

ALWAYS: Final[dict[type[Model], frozenset[str]]] = {
    ComputeProfileSpec: frozenset(
        {"devices", "node_selector", "tolerations", "runtime_class_name", "engine"}
    ),
    Devices: frozenset({"resource", "max"}),
    Toleration: frozenset({"key", "operator", "value", "effect", "toleration_seconds"}),
}
"""Fields that are hashed at their default too: endpoints have names that were made with them."""

LATER: Final = frozenset[str]()
"""Fields of a profile's spec that decide how an endpoint's pods are placed; hashed only when set."""


def hashed_placement(spec: ComputeProfileSpec) -> dict[str, Any]:
    """Where an endpoint's pods run, as JSON types."""
    wanted = ALWAYS[ComputeProfileSpec] | LATER
    return {name: value for name, value in hashed(spec).items() if name in wanted}


def hashed_resources(resources: PodResources | None) -> dict[str, Any] | None:
    """What the engine's container requests, by the names on the wire."""
    if resources is None:
        return None
    return resources.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)


def hashed(part: Model) -> dict[str, Any]:
    """The part as JSON types; a field that is not in `ALWAYS` is left out while it has its default."""
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
    """What later releases let a user of an endpoint choose: part of the name only where it is set."""
    spec = endpoint.spec
    chosen: dict[str, Any] = {}
    if spec.restarted_at is not None:
        chosen["restartedAt"] = spec.restarted_at.astimezone(UTC).isoformat()
    if api_keys_secret is not None:
        chosen["apiKeysSecret"] = api_keys_secret
    if spec.availability is not None and spec.availability.topology_spread:
        chosen["topologySpread"] = [each.to_dict() for each in spec.availability.topology_spread]
    return chosen
