"""Asking the API server whether it would take an object, and reading why not."""

import re
from dataclasses import dataclass, field
from typing import Any

from tests.integration.api import Api, Object, path_of

NAMESPACE = "default"
"""Nothing is stored by a dry run, so that every question can be asked in one namespace."""


@dataclass(frozen=True)
class Cause:
    """One reason of a refusal."""

    field: str
    message: str


@dataclass(frozen=True)
class Verdict:
    """What the API server said."""

    status: int
    message: str
    causes: tuple[Cause, ...]
    obj: Object = field(repr=False)

    @property
    def accepted(self) -> bool:
        return self.status < 300

    def messages_of(self, named: str) -> list[str]:
        """Why it was refused, as far as the field `named` is to blame."""
        return [cause.message for cause in self.causes if cause.field == named]


def try_create(api: Api, manifest: Object) -> Verdict:
    """Create by dry run, unknown fields refused, as kubectl asks for it."""
    namespace = manifest["metadata"].get("namespace", "")
    path = path_of(manifest["kind"], namespace) + "?dryRun=All&fieldValidation=Strict"
    return _verdict(api.request("POST", path, manifest))


def try_patch(
    api: Api, stored: Object, patch: Object, *, subresource: str = "", store: bool = True
) -> Verdict:
    """Merge `patch` into a stored object; without `store` by dry run."""
    metadata = stored["metadata"]
    path = path_of(stored["kind"], metadata.get("namespace", ""), metadata["name"])
    path += (f"/{subresource}" if subresource else "") + ("" if store else "?dryRun=All")
    return _verdict(api.request("PATCH", path, patch, Content_Type="application/merge-patch+json"))


def _verdict(answer: Any) -> Verdict:
    body = answer.json()
    if answer.status_code < 300:
        return Verdict(answer.status_code, "", (), body)
    causes = tuple(
        Cause(cause.get("field", ""), cause["message"])
        for cause in (body.get("details") or {}).get("causes", [])
    )
    return Verdict(answer.status_code, body["message"], causes, {})


def without_indexes(path: str) -> str:
    """`spec.gates[0].min` as `spec.gates[*].min`."""
    return re.sub(r"\[\d+\]", "[*]", path)
