# SPDX-License-Identifier: Apache-2.0
"""Accessors for the metadata of objects of any type."""

from typing import Any, Final

from finetune_operator.plan import Manifest

MANAGER_FIELDS: Final = ("manager", "subresource")
"""Fields to keep of an entry of `managedFields`; the rest is mainly names of fields."""


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


def applied_whole(obj: Manifest, manager: str) -> frozenset[str]:
    """Names of the fields of the spec that the manager applied as a whole, and no other manager has changed.

    The API server owns no fields, so such a field differs from the applied one only by defaults.
    """
    fields: dict[str, Any] = {}
    for entry in obj["metadata"].get("managedFields") or ():
        if (entry["manager"], entry["operation"], entry.get("subresource", "")) == (manager, "Apply", ""):
            fields = entry.get("fieldsV1", {}).get("f:spec", {})
    return frozenset(name.removeprefix("f:") for name, parts in fields.items() if not parts)


def without_field_names(obj: Manifest, *, keep_managers: bool) -> Manifest:
    """A copy of the object without `managedFields`, or with only the names of the managers."""
    metadata = {name: value for name, value in obj["metadata"].items() if name != "managedFields"}
    if keep_managers:
        entries = obj["metadata"].get("managedFields") or ()
        metadata["managedFields"] = [
            {key: entry[key] for key in MANAGER_FIELDS if key in entry} for entry in entries
        ]
    return {**obj, "metadata": metadata}
