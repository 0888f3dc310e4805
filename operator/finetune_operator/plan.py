# SPDX-License-Identifier: Apache-2.0
"""The plan of a pass: creates, applies, deletes, status and events, from the pure core to the engine."""

from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

NEVER_OBSERVED: Final = -1
"""`status.observedGeneration` of an object without a finished pass."""

Manifest = dict[str, Any]
"""A Kubernetes object as JSON."""


class Key(NamedTuple):
    """Key of an object of one of the operator's kinds; the namespace is empty for cluster-scoped kinds."""

    kind: str
    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class Create:
    """POST, never apply: an apply would take over a foreign object or re-create a deleted one.

    If the name exists, `same` decides whether the existing object is the operator's: its controller has the
    same uid, it has the same `spec.digest`, or always. Otherwise it is a name conflict. `Unread`: always, and
    without reading it, because the operator has no right to.
    """

    manifest: Manifest
    same: Literal["Controller", "Digest", "Any", "Unread"] = "Controller"


@dataclass(frozen=True, slots=True)
class Apply:
    """Server-side apply. Carry `metadata.uid` in the manifest once the object exists."""

    manifest: Manifest
    part: str = ""
    """Part of an object whose parts are applied separately, each with its own field manager. An apply of one
    part then removes no fields of another, even if a different release applied it."""


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete exactly this object: its uid and resourceVersion are sent as preconditions."""

    manifest: Manifest
    propagation: Literal["Foreground", "Background"] = "Foreground"


@dataclass(frozen=True, slots=True)
class Event:
    """A Kubernetes event on the reconciled object."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Desired changes, made in this order: create, apply, delete, metadata, status, events.

    A plan is idempotent. `status` is the whole new status, or None for no change. It is written at most once
    per pass, and not at all if it is equal. For an object that is being deleted `metadata` comes last,
    because the object is gone with its last finalizer.
    """

    create: tuple[Create, ...] = ()
    apply: tuple[Apply, ...] = ()
    delete: tuple[Delete, ...] = ()
    status: Manifest | None = None
    events: tuple[Event, ...] = ()
    requeue_after: float | None = None
    """Seconds until the next pass, even without a change."""
    metadata: Manifest | None = None
    """Desired `finalizers` (all of them) and `annotations` (those to set) of the reconciled object. The
    operator writes nothing else to an object that a user owns."""

    @property
    def written(self) -> tuple[Manifest, ...]:
        """The objects that are created, applied or deleted."""
        applied, deleted = (each.manifest for each in self.apply), (each.manifest for each in self.delete)
        return (*(each.manifest for each in self.create), *applied, *deleted)


def drop_empty(node: dict[str, Any]) -> dict[str, Any]:
    """The node and the objects in it without empty fields, as statuses are written.

    The API server adds some of them as defaults.
    """
    kept: dict[str, Any] = {}
    for key, value in node.items():
        inner = drop_empty(value) if isinstance(value, dict) else value
        if inner not in ({}, [], ""):
            kept[key] = inner
    return kept
