"""Accessors for the metadata of objects of any type."""

from typing import Any

from finetune_operator.plan import Manifest


def version(obj: Manifest) -> int:
    """The resource version as a number. Within a type, a greater one is newer."""
    return int(obj["metadata"]["resourceVersion"])


def controller(obj: Manifest) -> dict[str, Any]:
    """The owner reference to the object's controller, or an empty mapping."""
    references = obj["metadata"].get("ownerReferences") or []
    return next((reference for reference in references if reference.get("controller")), {})


def controller_uid(obj: Manifest) -> str:
    """The uid of the object's controller, or an empty string."""
    uid: str = controller(obj).get("uid", "")
    return uid
