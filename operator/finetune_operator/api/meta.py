"""What every kind shares: base model, metadata, conditions, and the markers that the CRD generator reads."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

GROUP: Final = "finetune.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"

NAME_LIMIT: Final = 40
"""Longest name of a user-made object, so that children's names stay within a Job's 63 characters."""

DNS_LABEL: Final = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
SHA256: Final = r"^sha256:[0-9a-f]{64}$"


class Model(BaseModel):
    """Base of every API type: frozen, camelCase on the wire, unknown fields of newer versions ignored."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, populate_by_name=True, extra="ignore")

    rules: ClassVar[tuple["Rule", ...]] = ()
    """CEL rules on this type; the CRD generator writes them as `x-kubernetes-validations`."""

    def to_dict(self) -> dict[str, Any]:
        """The wire form: camelCase, JSON types, absent fields left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


@dataclass(frozen=True, slots=True)
class Rule:
    """A CEL rule with the message a user reads when it refuses; `message` says what to do."""

    rule: str
    message: str


@dataclass(frozen=True, slots=True)
class Reserved:
    """Marks a field that this release validates but does not act on; using it stalls the object."""


@dataclass(frozen=True, slots=True)
class ReservedValues:
    """Marks values of an enum (or of its list items) that this release does not act on."""

    values: frozenset[str]

    @classmethod
    def of(cls, *values: str) -> "ReservedValues":
        return cls(frozenset(values))


Name = Annotated[str, Field(min_length=1, max_length=63, pattern=DNS_LABEL)]
ShortName = Annotated[str, Field(min_length=1, max_length=NAME_LIMIT, pattern=DNS_LABEL)]
Digest = Annotated[str, Field(pattern=SHA256, min_length=71, max_length=71)]
Uri = Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^[a-z][a-z0-9]*://[^\s]+$")]
Message = Annotated[str, Field(max_length=1024)]
DeletionPolicy = Literal["Retain", "Delete"]


class ObjectMeta(Model):
    """The part of `metadata` that the operator reads."""

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


class SecretReference(Model):
    """A Secret of type `finetune.dev/credentials` in the same namespace."""

    name: Annotated[str, Field(min_length=1, max_length=253, description="Name of the Secret.")]


class Condition(Model):
    """A `metav1.Condition`."""

    type: Annotated[str, Field(max_length=64)]
    status: Literal["True", "False", "Unknown"]
    reason: Annotated[str, Field(max_length=64)]
    message: Message = ""
    last_transition_time: datetime
    observed_generation: int = 0


Conditions = Annotated[
    tuple[Condition, ...], Field(max_length=16, json_schema_extra={"x-list-map-keys": ["type"]})
]


class Resource(Model):
    """Any of the six kinds, as read from the API server."""

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


def name_rule(kind: str) -> Rule:
    """Root rule that keeps user-made names short enough for their children."""
    return Rule(
        f"size(self.metadata.name) <= {NAME_LIMIT}",
        f"the name of a {kind} has at most {NAME_LIMIT} characters, so that its children's names stay valid:"
        " shorten it",
    )


def immutable_rules(spec: type[Model], mutable: frozenset[str], advice: str) -> tuple[Rule, ...]:
    """One rule a field: it may neither change, nor be removed, nor be added later.

    The obvious `self == oldSelf` on an optional field is a hole: remove it, then add another value.
    """
    rules = []
    for name, field in spec.model_fields.items():
        alias = field.alias or to_camel(name)
        if alias in mutable:
            continue
        if field.is_required():
            rules.append(Rule(f"self.{alias} == oldSelf.{alias}", f"{alias} is immutable: {advice}"))
        else:
            rules.append(
                Rule(
                    f"has(self.{alias}) == has(oldSelf.{alias})"
                    f" && (!has(self.{alias}) || self.{alias} == oldSelf.{alias})",
                    f"{alias} is immutable: {advice}",
                )
            )
    return tuple(rules)
