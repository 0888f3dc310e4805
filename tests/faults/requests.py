"""What the operator asks, under names that are the same in every run of the same chain.

Which request comes as the how-manieth hangs on chance; what it is about does not. So a request is named by
verb, resource and object, without the digits that are different in each namespace, and a write of a status
also by the condition that it sets.
"""

import json
import re
from dataclasses import dataclass
from typing import Final

from tests.integration.api import Object

MUTATING: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})
CHILDREN: Final = frozenset({"jobs", "pods", "deployments", "services"})
"""Resources of the objects that the operator makes and watches."""

UID: Final = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
TOKEN: Final = re.compile(
    # uids, digests, the hashes that we put into names, and the letters that Kubernetes puts there
    rf"{UID}|[0-9a-f]{{64}}"
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
        state = f" {state_of(self.resource, body)}" if self.subresource == "status" else ""
        return f"{self.method} {what} {about}{state}"


def plain(name: str) -> str:
    """A name without the parts that are different in each namespace."""
    return TOKEN.sub("", name).strip("-.").replace("--", "-")


def event_identity(resource: str, event: Object) -> str:
    """The name of a watch event: what it tells of which object."""
    obj = event["object"]
    told = "deleted" if event["type"] == "DELETED" else state_of(resource, obj)
    asked = obj.get("spec", {}).get("suspend", False)
    if resource == "finetunejobs" and asked != told.startswith("Suspended="):
        told = "to be suspended" if asked else "to be resumed"
    return f"{resource} {plain(obj['metadata']['name'])} {told}".strip()


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
