# SPDX-License-Identifier: Apache-2.0
"""Base of all messages: their wire form, the fields to omit for an older reader, and lenient reading.

A lenient reader checks JSON types only, so a field, an enum value or a value beyond today's bounds that a
newer release wrote never makes an object unreadable.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Final

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    PlainSerializer,
    SerializationInfo,
)
from pydantic.alias_generators import to_camel
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, SchemaValidator

BOUNDS: Final = frozenset({"max_length", "min_length", "pattern", "ge", "gt", "le", "lt", "multiple_of"})
OPAQUE: Final = frozenset({"cls", "config", "metadata", "serialization", "default", "default_factory"})
"""Parts of a core schema that contain no schemas."""


@cache
def lenient_validator(model: type[BaseModel]) -> SchemaValidator:
    """A validator that creates instances of the model without checking enum values and bounds.

    It raises ValidationError for wrong JSON types and for missing fields. The caller's `extra` decides about
    unknown fields.
    """
    # The prebuilt validators of the model's parts are as strict as the model.
    return SchemaValidator(_relax_literals(model.__pydantic_core_schema__), _use_prebuilt=False)


def drop_bounds(schema: Any) -> Any:
    """The core schema without its bounds."""
    return _mapped(schema, lambda literal: literal)


def _relax_literals(schema: Any) -> Any:
    """The core schema without bounds, in which a literal accepts any scalar of its type."""
    return _mapped(
        schema,
        lambda literal: {
            "type": "str" if all(isinstance(each, str) for each in literal["expected"]) else "any"
        },
    )


def _mapped(schema: Any, literal: Callable[[dict[str, Any]], Any]) -> Any:
    """The core schema without bounds, with each literal replaced by `literal(schema)`."""
    if isinstance(schema, list):
        return [_mapped(item, literal) for item in schema]
    if isinstance(schema, tuple):
        return tuple(_mapped(item, literal) for item in schema)
    if not isinstance(schema, dict):
        return schema
    if schema.get("type") == "literal":
        return literal(schema)
    return {key: _part(key, value, literal) for key, value in schema.items() if key not in BOUNDS}


def _part(key: str, value: Any, literal: Callable[[dict[str, Any]], Any]) -> Any:
    if key in OPAQUE:
        return value
    if key == "fields" and isinstance(value, dict):
        # Names of fields, one of which may be that of a bound.
        return {name: _mapped(field, literal) for name, field in value.items()}
    return _mapped(value, literal)


CONTRACT_VERSION: Final = 2
CONTRACT_VERSIONS: Final = (CONTRACT_VERSION,)
"""Versions that this release reads and writes, in ascending order."""

Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]


def _place(path: str, info: SerializationInfo) -> str:
    folders: Mapping[str, str] = info.context or {}
    mounts = [mount for mount in folders if path == mount or path.startswith(f"{mount}/")]
    if not mounts:
        return path
    mount = max(mounts, key=len)
    return folders[mount] + path[len(mount) :]


PodPath = Annotated[str, PlainSerializer(_place, return_type=str)]
"""Absolute path in a pod. For a process outside of a pod, `model_dump` takes folders by mount path as its
`context`, and puts them in place of the mounts."""


class Contract(BaseModel):
    """Base of all messages: frozen, camelCase on the wire, unknown fields rejected unless read leniently.

    Numbers are finite: NaN and Infinity are not valid JSON, and the API server rejects a status with them.
    """

    model_config = ConfigDict(
        frozen=True,
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        allow_inf_nan=False,
    )

    def to_json(self) -> str:
        """JSON text of `to_dict`."""
        return json.dumps(self.to_dict(), ensure_ascii=False, separators=(",", ":"))

    def to_dict(self) -> dict[str, Any]:
        """The wire form as JSON types, without fields at their default or newer than its `contract`.

        `contract` and `stage` are always included: they decide how the reader interprets the rest, and the
        reader's defaults may differ.
        """
        version = getattr(self, "contract", CONTRACT_VERSION)
        message = self.model_dump(
            mode="json", by_alias=True, exclude_defaults=True, exclude=_newer_fields(self, version)
        )
        leading: dict[str, Any] = {
            name: getattr(self, name) for name in ("contract", "stage") if name in type(self).model_fields
        }
        return {**leading, **message}

    def unsupported_fields(self) -> tuple[str, ...]:
        """Wire paths of essential fields that are set but unknown to the message's `contract`."""
        return tuple(_essential_paths(self, getattr(self, "contract", CONTRACT_VERSION)))


class SharedPart(Contract):
    """Base of a part whose fields the API shares, with their descriptions and bounds.

    The API server has already checked the bounds, possibly those of another release. Readers therefore accept
    values beyond them.
    """

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema: CoreSchema = drop_bounds(handler(source))
        return schema


def dump_set_fields(message: Contract) -> dict[str, Any]:
    """The fields by name as JSON types, without those, at any depth, that are None, or that are at their
    default and unknown to the oldest version.

    So a field that is added later changes what is recorded only where it is set.
    """
    values = message.model_dump(mode="json", exclude_none=True)
    for name, field in type(message).model_fields.items():
        value = getattr(message, name)
        if _is_newer(field, CONTRACT_VERSIONS[0]) and value == field.get_default(call_default_factory=True):
            values.pop(name, None)
        elif isinstance(value, Contract):
            values[name] = dump_set_fields(value)
    return values


def _marks(field: FieldInfo) -> dict[str, Any]:
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


def _is_newer(field: FieldInfo, version: int) -> bool:
    return int(_marks(field).get("since", 0)) > version


def _newer_fields(message: BaseModel, version: int) -> dict[str, Any]:
    """The fields, at any depth, that `version` does not know, in the form of pydantic's `exclude`."""
    newer: dict[str, Any] = {}
    for name, field in type(message).model_fields.items():
        value = getattr(message, name)
        if _is_newer(field, version):
            newer[name] = True
        elif isinstance(value, Contract):
            newer[name] = _newer_fields(value, version)
        elif is_dataclass(value):
            newer[name] = {
                each.name: True for each in fields(value) if each.metadata.get("since", 0) > version
            }
        elif isinstance(value, tuple):
            newer[name] = {
                i: _newer_fields(item, version) for i, item in enumerate(value) if isinstance(item, Contract)
            }
    return {name: names for name, names in newer.items() if names}


def _essential_paths(message: BaseModel, version: int, prefix: str = "") -> Iterator[str]:
    for name, field in type(message).model_fields.items():
        value, path = getattr(message, name), f"{prefix}{field.alias or name}"
        if _is_newer(field, version):
            if _marks(field).get("essential") and value != field.get_default(call_default_factory=True):
                yield path
        elif isinstance(value, Contract):
            yield from _essential_paths(value, version, f"{path}.")
        elif isinstance(value, tuple):
            for i, item in enumerate(value):
                if isinstance(item, Contract):
                    yield from _essential_paths(item, version, f"{path}[{i}].")
