"""What of a profile enters the name of a revision, so that no release rolls an endpoint by itself."""

from typing import Any, Final

from finetune_operator.api.computeprofile import ComputeProfileSpec, Devices, PodResources, Toleration
from finetune_operator.api.meta import Model

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
