"""What a reconciler wants done: the vocabulary between the pure core and the engine."""

from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

NEVER_OBSERVED: Final = -1
"""`status.observedGeneration` of an object that no pass has ended for."""

Manifest = dict[str, Any]
"""A Kubernetes object as JSON."""


class Key(NamedTuple):
    """One object of one of our kinds; the namespace is empty for cluster-scoped kinds."""

    kind: str
    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class Create:
    """POST, never apply: applying would take over a foreign object or resurrect a deleted one.

    When the name exists already, `same` says what makes the existing object ours: its controller's uid,
    its `spec.digest`, or anything. An object that is not ours is a name conflict. `Unread`: whatever has the
    name is taken for it, since the operator may not read it.
    """

    manifest: Manifest
    same: Literal["Controller", "Digest", "Any", "Unread"] = "Controller"


@dataclass(frozen=True, slots=True)
class Apply:
    """Server-side apply. Carry `metadata.uid` in the manifest once the object exists."""

    manifest: Manifest
    part: str = ""
    """Of an object of which parts are applied apart: a field manager of its own, so that applying another
    part, also by another release, takes nothing of this one away."""


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete exactly the object that was seen; its uid and resourceVersion are sent as preconditions."""

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
    """What should be done now, in this order: create, apply, delete, metadata, status, events.

    Carrying it out twice is harmless. `status` is the whole new status, or None to leave it;
    it is written at most once a pass and not at all when nothing changed. Of an object that is being deleted
    the `metadata` comes last, because it is gone with its last finalizer.
    """

    create: tuple[Create, ...] = ()
    apply: tuple[Apply, ...] = ()
    delete: tuple[Delete, ...] = ()
    status: Manifest | None = None
    events: tuple[Event, ...] = ()
    requeue_after: float | None = None
    """Seconds until another look is due although nothing may change."""
    metadata: Manifest | None = None
    """`finalizers` (all of them) and `annotations` (those to set) of the reconciled object as they should be.
    Nothing else is ever written to an object that belongs to somebody else."""
