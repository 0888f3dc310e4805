# SPDX-License-Identifier: Apache-2.0
"""Base of all API types: wire form, metadata, conditions, CEL rules, markers for the CRD generator.

A status keeps the fields and values that a newer release has written and this one does not know.
"""

import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Annotated, Any, ClassVar, Final, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, JsonValue, WithJsonSchema
from pydantic.alias_generators import to_camel
from pydantic.fields import FieldInfo

from finetune_operator.plan import NEVER_OBSERVED

GROUP: Final = "finetune.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"

NAME_LIMIT: Final = 40
"""Max length of the names of user-made objects, so that the names of their Jobs fit into 63 characters."""

DNS_LABEL: Final = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
DNS_SUBDOMAIN: Final = r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$"
SHA256: Final = r"^sha256:[0-9a-f]{64}$"
HTTP_URL: Final = r"^https?://[^/?#@\s]+(/[^?#\s]*)?$"
"""Base URL of an API: without user, query and fragment."""
URI: Final = r"^[a-z][a-z0-9]*://[^\s]+$"


@cache
def _shared(fields: frozenset[str]) -> set[str]:
    return set(fields)


class Model(BaseModel):
    """Base of every API type: frozen, camelCase on the wire, unknown fields of newer versions ignored."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, populate_by_name=True, extra="ignore")

    rules: ClassVar[tuple["CELRule", ...]] = ()
    """CEL rules on this type; the CRD generator writes them as `x-kubernetes-validations`."""

    def model_post_init(self, _context: Any) -> None:
        """Share the set of given fields between instances; one set each would be half of the memory."""
        object.__setattr__(self, "__pydantic_fields_set__", _shared(frozenset(self.model_fields_set)))

    def to_dict(self) -> dict[str, Any]:
        """Return the wire form: camelCase, JSON types, without absent fields."""
        # pydantic would warn about values that only a newer release knows.
        return self.model_dump(mode="json", by_alias=True, exclude_none=True, warnings=False)


@dataclass(frozen=True, slots=True)
class CELRule:
    """A CEL rule. `message` is the error that users see: it names the field and says what to do.

    `field` is the field of the type that the error refers to; empty: the whole type.
    """

    rule: str
    message: str
    field: str = ""


@dataclass(frozen=True, slots=True)
class RequiredByRule:
    """Marker of a required field that the schema leaves optional, so that a rule of its type can refuse its
    absence with a sentence: the API server skips rules as soon as a field that the schema requires is absent.
    """

    message: str

    def rule(self, field: str) -> CELRule:
        """The rule of the type that has the field."""
        return CELRule(f"has(self.{field})", self.message, field)


@dataclass(frozen=True, slots=True)
class Reserved:
    """Marker of a field that this release validates but does not implement; setting it stalls the object."""


@dataclass(frozen=True, slots=True)
class ReservedValues:
    """Marker of values of an enum, or of a list of it, that this release does not implement."""

    values: frozenset[str]

    @classmethod
    def of(cls, *values: str) -> "ReservedValues":
        return cls(frozenset(values))


def pattern_rule(pattern: str, message: str) -> dict[str, JsonValue]:
    """Rule of a string with a pattern: a message, because the API server's shows only the pattern."""
    return {"rule": f"self.matches(r'{pattern}')", "message": message}


def pattern_advice(pattern: str, message: str) -> dict[str, JsonValue]:
    """Schema extra of a string with a pattern, with its rule."""
    return {"x-kubernetes-validations": [pattern_rule(pattern, message)]}


PORT_RULE: Final[dict[str, JsonValue]] = {
    "rule": "isURL(self) && (url(self).getPort() == '' || url(self).getPort().size() <= 5"
    " && int(url(self).getPort()) > 0 && int(url(self).getPort()) <= 65535)",
    "message": "correct the address: it needs a host, and a port, if it names one, from 1 to 65535",
}
"""Rule of a base URL. It applies to the field, not to its pattern: existing objects stay readable."""


def base_url_advice(message: str) -> dict[str, JsonValue]:
    """Schema extra of a field with the pattern HTTP_URL."""
    return {"x-kubernetes-validations": [pattern_rule(HTTP_URL, message), PORT_RULE]}


LABEL_ADVICE: Final = pattern_advice(
    DNS_LABEL,
    "use lower-case letters, digits and '-', with a letter or digit at both ends, for example my-model-2",
)

Name = Annotated[str, Field(min_length=1, max_length=63, pattern=DNS_LABEL, json_schema_extra=LABEL_ADVICE)]
ShortName = Annotated[
    str, Field(min_length=1, max_length=NAME_LIMIT, pattern=DNS_LABEL, json_schema_extra=LABEL_ADVICE)
]
Digest = Annotated[
    str,
    Field(
        pattern=SHA256,
        min_length=71,
        max_length=71,
        json_schema_extra=pattern_advice(
            SHA256, "write sha256: and 64 lower-case hexadecimal digits, as the digest of a record shows"
        ),
    ),
]
URI_RULE: Final = pattern_rule(
    URI, "write SCHEME://PATH without blanks, for example pvc://models/gemma-3-270m"
)
URI_ADVICE: Final[dict[str, JsonValue]] = {"x-kubernetes-validations": [URI_RULE]}
Uri = Annotated[str, Field(min_length=1, max_length=1024, pattern=URI, json_schema_extra=URI_ADVICE)]
StoreUri = Annotated[str, Field(min_length=1, max_length=900, pattern=URI, json_schema_extra=URI_ADVICE)]
"""Shorter than Uri, so that the URI of an artifact in the store fits into a Uri."""
IntOrPercent = Annotated[
    int | str,
    WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            "x-kubernetes-validations": [
                {
                    "rule": "type(self) == int ? self >= 0 && self <= 1000"
                    " : self.matches('^(100|[1-9]?[0-9])%$')",
                    "message": "write a number from 0 to 1000, or a percentage from 0% to 100%",
                }
            ],
        }
    ),
]
"""Number of replicas, or percent of the desired ones, as in a Deployment."""
MAX_PROBLEMS: Final = 10
"""Max number of problems, and of warnings, in a status."""
Message = Annotated[str, Field(max_length=1024)]
DeletionPolicy = Literal["Retain", "Delete"]


class FieldManager(Model):
    """Client that has set fields of an object."""

    manager: str = ""
    subresource: str = ""


class ObjectMeta(Model):
    """Fields of `metadata` that the operator reads."""

    name: str
    namespace: str | None = None
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    finalizers: list[str] = Field(default_factory=list)
    managed_fields: tuple[FieldManager, ...] = ()
    """Kept for records only."""


class SecretReference(Model):
    """Reference to a Secret in the same namespace."""

    name: Annotated[
        str,
        Field(
            min_length=1,
            max_length=253,
            pattern=DNS_SUBDOMAIN,
            description="Name of the Secret.",
            json_schema_extra=pattern_advice(
                DNS_SUBDOMAIN,
                "a Secret's name may only have lower-case letters, digits, '-' and '.': see kubectl get"
                " secrets",
            ),
        ),
    ]


class Condition(Model):
    """Condition of an object, in the form of metav1.Condition."""

    type: Annotated[str, Field(max_length=64, description="Type of the condition, such as Ready.")]
    status: Annotated[Literal["True", "False", "Unknown"], Field(description="Whether the condition holds.")]
    reason: Annotated[
        str,
        Field(
            max_length=64,
            description="Reason for the current status, in CamelCase. docs/conditions.md lists all reasons.",
        ),
    ]
    message: Annotated[
        Message, Field(description="Details for users: what is wrong, where, and what to do next.")
    ] = ""
    last_transition_time: Annotated[datetime, Field(description="Time of the last change of status.")]
    observed_generation: Annotated[
        int, Field(description="Generation of the object that the condition was computed for.")
    ] = 0


Conditions = Annotated[
    tuple[Condition, ...],
    Field(
        max_length=16,
        description="Conditions of the object. docs/conditions.md lists their types and reasons.",
        json_schema_extra={"x-list-map-keys": ["type"]},
    ),
]


Phase = Annotated[
    str,
    Field(
        max_length=32,
        description="Summary of the conditions for users. Programs must read the conditions instead.",
    ),
]


class Status(Model):
    """Base class of all statuses."""

    observed_generation: int = NEVER_OBSERVED


class Resource(Model):
    """Object of one of the operator's kinds, as read from the API server."""

    done_phase: ClassVar[str | None] = None
    """Phase of an object that is done; None for a kind without phases."""
    keeps_verdict: ClassVar[bool] = False
    """Whether an object that has succeeded or failed never starts again, and keeps that condition."""
    stays_ready: ClassVar[bool] = False
    """Whether an object that is Ready with its spec stays Ready; Refreshed shows later problems."""

    api_version: str = API_VERSION
    kind: str
    metadata: ObjectMeta

    @property
    def name(self) -> str:
        return self.metadata.name

    @property
    def namespace(self) -> str:
        """The namespace, empty for cluster-scoped kinds."""
        return self.metadata.namespace or ""

    @property
    def uid(self) -> str:
        return self.metadata.uid


def name_rules(kind: str, limit: int = NAME_LIMIT) -> tuple[CELRule, ...]:
    """Rules for names of user-made objects, which are part of the names of children and of references."""
    return (
        CELRule(
            f"size(self.metadata.name) <= {limit}",
            f"metadata.name of kind {kind} may have at most {limit} characters, so that its children's"
            " names stay valid: shorten it",
        ),
        CELRule(
            "!self.metadata.name.contains('.')",
            f"metadata.name of kind {kind} must not have dots, so that other fields can refer to it: use '-'",
        ),
    )


def immutable_rules(spec: type[Model], mutable: frozenset[str], advice: str) -> tuple[CELRule, ...]:
    """One rule per field: it must not be changed, removed or added later.

    `self == oldSelf` is not enough for an optional field: a user could remove it, then add another value.
    """
    rules = []
    for name, field in spec.model_fields.items():
        alias = field.alias or to_camel(name)
        if alias in mutable:
            continue
        if field.is_required() and not any(isinstance(mark, RequiredByRule) for mark in field.metadata):
            rules.append(
                CELRule(f"self.{alias} == oldSelf.{alias}", f"{alias} is immutable: {advice}", alias)
            )
        else:
            rules.append(CELRule(_same(alias), f"{alias} is immutable: {advice}", alias))
    return tuple(rules)


def immutable_part(part: str, model: type[Model], mutable: frozenset[str], advice: str) -> CELRule:
    """Rule for a part of the spec, always present by its default: only its fields `mutable` may change."""
    aliases = (field.alias or to_camel(name) for name, field in model.model_fields.items())
    same = " && ".join(_same(f"{part}.{alias}") for alias in aliases if alias not in mutable)
    but = ", ".join(f"{part}.{alias}" for alias in sorted(mutable))
    return CELRule(same, f"{part} is immutable: {advice}; only {but} can change", part)


def _same(path: str) -> str:
    """CEL expression: the field was not changed, removed or added."""
    return f"has(self.{path}) == has(oldSelf.{path}) && (!has(self.{path}) || self.{path} == oldSelf.{path})"


def is_one_of(expression: str, names: Sequence[str]) -> str:
    """CEL expression: the string is one of these names."""
    if len(names) == 1:
        return f"{expression} == '{names[0]}'"
    return f"{expression} in [{', '.join(repr(name) for name in names)}]"


def is_none_of(expression: str, names: Sequence[str]) -> str:
    """CEL expression: the string is none of these names."""
    if len(names) == 1:
        return f"{expression} != '{names[0]}'"
    return f"!({is_one_of(expression, names)})"


IDENTITIES: Final = (
    ("name",),
    ("type",),
    ("digest",),
    ("stage",),
    ("step",),
    ("namespace",),
    ("pod",),
    ("cause",),
    ("checkpoint", "reason"),
    ("trigger", "key"),
    ("reason",),
)
"""Required fields that identify an item of a list, in the order in which they are tried."""


def keep_unknown(model: type[Model], live: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return `new`, in the wire form of the model, with the fields of `live` that the model does not know.

    A part or a list item that `new` leaves out is not restored.
    """
    aliases = {field.alias or name: field.annotation for name, field in model.model_fields.items()}
    kept = {key: value for key, value in live.items() if key not in aliases}
    for key, annotation in aliases.items():
        part = _find_model(annotation)
        if key in new:
            kept[key] = new[key] if part is None else _keep(part, live.get(key), new[key])
        elif part is annotation and part is not None:
            # A part that is always present; `new` leaves it out because all its known fields are absent.
            left = keep_unknown(part, live.get(key) or {}, {})
            kept |= {key: left} if left else {}
    return kept


def _keep(model: type[Model], live: Any, new: Any) -> Any:
    if isinstance(new, dict) and isinstance(live, dict):
        return keep_unknown(model, live, new)
    if isinstance(new, list | tuple) and isinstance(live, list | tuple):
        identity = find_identity(model)
        return [keep_unknown(model, _find_same_item(identity, item, live), item) for item in new]
    return new


def find_identity(model: type[Model]) -> tuple[str, ...]:
    """Fields that identify an item in a list of this model; empty if a list is always written as a whole."""
    required = {name for name, field in model.model_fields.items() if field.is_required()}
    return next((names for names in IDENTITIES if required.issuperset(names)), ())


def _find_same_item(
    identity: tuple[str, ...], item: Mapping[str, Any], among: Iterable[Mapping[str, Any]]
) -> Mapping[str, Any]:
    """The item of the same identity, or an empty one."""
    if not identity:
        return {}
    return next((each for each in among if all(each.get(name) == item.get(name) for name in identity)), {})


def _find_model(annotation: Any) -> type[Model] | None:
    """The model of a field that holds one, or a tuple of them; None for every other field."""
    if isinstance(annotation, type) and issubclass(annotation, Model):
        return annotation
    if get_origin(annotation) in {Annotated, Union, types.UnionType, tuple}:
        return next((found for arg in get_args(annotation) if (found := _find_model(arg)) is not None), None)
    return None


def find_unimplemented(spec: Model) -> tuple[str, ...]:
    """One message per reserved field or value in the spec; empty if there is none."""
    return tuple(_walk(spec, "spec"))


def _walk(model: Model, path: str) -> Iterator[str]:
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        here = f"{path}.{field.alias or name}"
        yield from _check_marks(field, value, here)
        if isinstance(value, Model):
            yield from _walk(value, here)
        elif isinstance(value, tuple):
            for index, item in enumerate(value):
                if isinstance(item, Model):
                    yield from _walk(item, f"{here}[{index}]")


def _check_marks(field: FieldInfo, value: Any, path: str) -> Iterator[str]:
    for mark in field.metadata:
        # False requests nothing, so it needs no implementation.
        if isinstance(mark, Reserved) and value is not None and value is not False:
            yield f"{path} is not implemented in this release; remove it"
        elif isinstance(mark, ReservedValues):
            used = value if isinstance(value, tuple) else (value,)
            for item in used:
                if item in mark.values:
                    others = [other for other in _choices(field.annotation) if other not in mark.values]
                    advice = f"use {' or '.join(others)}" if others else "remove it"
                    yield f"{path}: {item} is not implemented in this release; {advice}"


def _choices(annotation: Any) -> Iterator[str]:
    """The strings of a Literal, also within a tuple or optional type."""
    for argument in get_args(annotation):
        if isinstance(argument, str):
            yield argument
        elif argument is not Ellipsis:
            yield from _choices(argument)
