# SPDX-License-Identifier: Apache-2.0
"""Identities of the operator's requests that are equal in every run of the same chain.

The order of requests depends on timing, but not their subjects. The identity of a request consists of verb,
resource and object name, without the digits that differ between namespaces. A write of a status also has the
condition that it sets, and a write of finalizers whether ours is among them.
"""

import json
import re
from dataclasses import dataclass
from typing import Final

from finetune_operator.manifests.labels import FINALIZER
from finetune_operator.reconcile.inputs.related_types import RELATED_TYPES, children_of
from tests.integration.api import Object

MUTATING: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})
CHILDREN: Final = frozenset(each.type.plural for each in children_of(RELATED_TYPES))
"""Resources of the objects that the operator creates and watches."""

UID: Final = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
TOKEN: Final = re.compile(
    # uids, digests, nonces, the operator's hashes in names, and Kubernetes' random letters in names
    rf"{UID}|[0-9a-f]{{64}}|[0-9a-f]{{32}}"
    r"|(?<=[-. \"])(?:[0-9a-f]{5,16}|[bcdfghjklmnpqrstvwxz2456789]{5,10})(?![a-z0-9])"
)

STATES: Final = (
    "Stalled",
    "Ready",
    "Suspended",
    "Reconciling",
    "Promoted",
    "Available",
    "Complete",
    "Failed",
)
"""Condition types by relevance; the first one that an object has is its state."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request to the API server.

    Attributes:
        method: HTTP method.
        path: path with the query.
        resource: plural name; empty if the path is not that of an object or collection.
        subresource: name of the subresource, or empty.
        name: name of the object; empty for a collection.
        sent: the unchanged body.
    """

    method: str
    path: str
    resource: str
    subresource: str
    name: str
    sent: bytes

    @classmethod
    def of(cls, method: str, path: str, sent: bytes) -> "Request":
        parts = path.partition("?")[0].strip("/").split("/")
        rest = parts[2:] if parts[0] == "api" else parts[3:]
        if rest[:1] == ["namespaces"] and len(rest) > 2:
            rest = rest[2:]
        resource, name, subresource = (*rest, "", "", "")[:3]
        return cls(method, path, resource, subresource, name, sent)

    @property
    def mutates(self) -> bool:
        return self.method in MUTATING

    @property
    def watches(self) -> bool:
        return "watch=true" in self.path

    @property
    def lists(self) -> bool:
        return self.method == "GET" and bool(self.resource) and not self.name and not self.watches

    @property
    def identity(self) -> str:
        """Verb, resource, object name and state."""
        body: Object = json.loads(self.sent) if self.sent else {}
        resource = f"{self.resource}/{self.subresource}" if self.subresource else self.resource
        if self.resource == "events":
            target = f"{plain(body['involvedObject']['name'])} {body['reason']}"
        else:
            target = plain(self.name or body.get("metadata", {}).get("name", ""))
        state = ""
        if self.subresource == "status":
            state = f" {state_of(self.resource, body)}"
        elif self.method == "PATCH" and "finalizers" in body["metadata"]:
            state = " held" if FINALIZER in body["metadata"]["finalizers"] else " released"
        return f"{self.method} {resource} {target}{state}"


def plain(name: str) -> str:
    """A name without the parts that differ between namespaces."""
    return TOKEN.sub("", name).strip("-.").replace("--", "-")


def event_identity(resource: str, event: Object) -> str:
    """Identity of a watch event: resource, object name and state."""
    obj = event["object"]
    state = "deleted" if event["type"] == "DELETED" else _requested(resource, obj) or state_of(resource, obj)
    return f"{resource} {plain(obj['metadata']['name'])} {state}".strip()


def _requested(resource: str, obj: Object) -> str:
    """A user's request in the spec of one of our objects that its status does not confirm yet."""
    state, spec = state_of(resource, obj), obj.get("spec") or {}
    if resource not in CHILDREN and "deletionTimestamp" in obj["metadata"]:
        return "to be deleted"
    if resource == "finetunejobs" and spec.get("suspend", False) != state.startswith("Suspended="):
        return "to be suspended" if spec.get("suspend", False) else "to be resumed"
    approval = (spec.get("approval") or {}).get("state") if resource == "checkpoints" else None
    confirmed = {"Approved": "Promoted=True", "Rejected": "Promoted=False/Rejected"}
    return f"to be {approval.lower()}" if approval and not state.startswith(confirmed[approval]) else ""


def state_of(resource: str, obj: Object) -> str:
    """A short text for an object's status."""
    status = obj.get("status") or {}
    if resource == "pods":
        return str(status["phase"])
    if resource == "deployments":
        return f"{status.get('readyReplicas', 0)} ready"
    conditions = {each["type"]: each for each in status.get("conditions") or ()}
    for type_ in STATES:
        if type_ in conditions:
            each = conditions[type_]
            return f"{type_}={each['status']}/{each['reason']}"
    return ""
