# SPDX-License-Identifier: Apache-2.0
"""Test with dry runs whether the API server accepts an object, and read the reasons of a refusal."""

import re
from dataclasses import dataclass, field
from typing import Any

from tests.integration.api import Api, Object, path_of
from tests.integration.rules.offline import assert_same_verdict

NAMESPACE = "default"
"""A dry run stores nothing, so one namespace is enough."""


@dataclass(frozen=True)
class Cause:
    """One reason of a refusal."""

    field: str
    message: str


@dataclass(frozen=True)
class Verdict:
    """The API server's answer."""

    status: int
    message: str
    causes: tuple[Cause, ...]
    obj: Object = field(repr=False)

    @property
    def accepted(self) -> bool:
        return self.status < 300

    def messages_of(self, named: str) -> list[str]:
        """Reasons of the refusal for the field `named`."""
        return [cause.message for cause in self.causes if cause.field == named]


def try_create(
    api: Api, manifest: Object, field_validation: str = "Strict", *, same_offline: bool = True
) -> Verdict:
    """Create with a dry run, with the field validation of kubectl or of another client.

    The verdict of `finetune validate` must be the same, unless the API server has other definitions.
    """
    namespace = manifest["metadata"].get("namespace", "")
    path = f"{path_of(manifest['kind'], namespace)}?dryRun=All&fieldValidation={field_validation}"
    verdict = _verdict(api.request("POST", path, manifest))
    if same_offline and field_validation == "Strict":
        assert_same_verdict(manifest, verdict.status, verdict.message, verdict.causes)
    return verdict


def try_patch(
    api: Api, stored: Object, patch: Object, *, subresource: str = "", store: bool = True
) -> Verdict:
    """Merge `patch` into a stored object; without `store` as a dry run."""
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
