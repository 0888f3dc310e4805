# SPDX-License-Identifier: Apache-2.0
"""Names, status and conditions of objects of any kind."""

from typing import Any

from finetune_operator.plan import Manifest


def object_names(obj: Manifest) -> tuple[str, str]:
    """Namespace and name."""
    return obj["metadata"]["namespace"], obj["metadata"]["name"]


def object_status(obj: Manifest) -> dict[str, Any]:
    """The status; empty if there is none."""
    status: dict[str, Any] = obj.get("status") or {}
    return status


def true_reason(status: dict[str, Any], type_: str) -> str | None:
    """The reason of a condition that is True."""
    return next(
        (
            condition["reason"]
            for condition in status.get("conditions", ())
            if condition["type"] == type_ and condition["status"] == "True"
        ),
        None,
    )


def condition_status(status: dict[str, Any], type_: str) -> str | None:
    """The status of a condition; None if the object does not have it."""
    return next((each["status"] for each in status.get("conditions", ()) if each["type"] == type_), None)
