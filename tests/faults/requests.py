"""What the operator asks, under names that are the same in every run of the same chain.

Which request comes as the how-manieth hangs on chance; what it is about does not. So a request is named by
verb, resource and object, without the digits that are different in each namespace, a write of a status
also by the condition that it sets, and one of finalizers by whether ours is among them.
"""

import json
import re
from dataclasses import dataclass
from typing import Final

from finetune_operator.manifests.labels import FINALIZER
from finetune_operator.reconcile.inputs.secondaries import SECONDARIES, children_of
from tests.integration.api import Object

MUTATING: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})
CHILDREN: Final = frozenset(each.type.plural for each in children_of(SECONDARIES))
"""Resources of the objects that the operator makes and watches."""

UID: Final = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
TOKEN: Final = re.compile(
    # uids, digests, nonces, the hashes that we put into names, and the letters that Kubernetes puts there
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
"""The condition that says most about an object, in this order."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request to the API server.

    Attributes:
        path: with the query.
        resource: plural, or nothing where the path is none of an object or collection.
        subresource: or nothing.
        name: of the object, or nothing for a collection.
        sent: the body as it came.
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
        """Verb, resource, object, and what is said of it."""
        body: Object = json.loads(self.sent) if self.sent else {}
        what = f"{self.resource}/{self.subresource}" if self.subresource else self.resource
        if self.resource == "events":
            about = f"{plain(body['involvedObject']['name'])} {body['reason']}"
        else:
            about = plain(self.name or body.get("metadata", {}).get("name", ""))
        state = ""
        if self.subresource == "status":
            state = f" {state_of(self.resource, body)}"
        elif self.method == "PATCH" and "finalizers" in body["metadata"]:
            state = " held" if FINALIZER in body["metadata"]["finalizers"] else " released"
        return f"{self.method} {what} {about}{state}"


def plain(name: str) -> str:
    """A name without the parts that are different in each namespace."""
    return TOKEN.sub("", name).strip("-.").replace("--", "-")


def event_identity(resource: str, event: Object) -> str:
    """The name of a watch event: what it tells of which object."""
    obj = event["object"]
    told = "deleted" if event["type"] == "DELETED" else _asked(resource, obj) or state_of(resource, obj)
    return f"{resource} {plain(obj['metadata']['name'])} {told}".strip()


def _asked(resource: str, obj: Object) -> str:
    """What a user asks of one of our objects, until its status says that it is so."""
    state, spec = state_of(resource, obj), obj.get("spec") or {}
    if resource not in CHILDREN and "deletionTimestamp" in obj["metadata"]:
        return "to be deleted"
    if resource == "finetunejobs" and spec.get("suspend", False) != state.startswith("Suspended="):
        return "to be suspended" if spec.get("suspend", False) else "to be resumed"
    asked = (spec.get("approval") or {}).get("state") if resource == "checkpoints" else None
    is_so = {"Approved": "Promoted=True", "Rejected": "Promoted=False/Rejected"}
    return f"to be {asked.lower()}" if asked and not state.startswith(is_so[asked]) else ""


def state_of(resource: str, obj: Object) -> str:
    """What matters of an object's status, in a word or two."""
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
