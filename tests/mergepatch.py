# SPDX-License-Identifier: Apache-2.0
"""JSON merge patch (RFC 7396), as `kubectl patch --type merge` applies it, and for lists of named items."""

import json
from collections.abc import Mapping
from typing import Any, Final

NAMES: Final = (
    ("manifest", "kind"),
    ("manifest", "metadata", "name"),
    ("name",),
    ("type",),
    ("kind",),
    ("metadata", "name"),
    ("mountPath",),
    ("object",),
)
"""Paths of the field that names the items of a list: the first that all items have, with distinct values."""


def merged(target: Any, patch: Any, *, by_name: bool = False) -> Any:
    """`target` with `patch` applied: null removes a field, a list replaces a list. Does not change either.

    With `by_name` a mapping for a list patches its items by their names: null removes an item, and an item of
    another name is appended.

    Raises:
        ValueError: a mapping for a list whose items have no names.
    """
    if not isinstance(patch, dict):
        return patch
    if by_name and isinstance(target, list):
        if (path := _naming(target)) is None:
            raise ValueError(f"the items of a list have no names: a patch can only replace it: {target}")
        return list(merged(_named(target, path), patch, by_name=True).values())
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value, by_name=by_name)
    return result


def difference(base: Any, target: Any) -> Any:
    """The patch `by_name` that makes `target` of `base`, which are not equal.

    The order of the items of a list is kept, that of the fields of a mapping is not. `target` has no null.
    """
    if isinstance(base, dict) and isinstance(target, dict):
        return _of_fields(base, target)
    if isinstance(base, list) and isinstance(target, list) and (path := _naming(base)):
        items = _named(target, path)
        patch = _of_fields(_named(base, path), items)
        if len(items) == len(target) and is_same(merged(base, patch, by_name=True), target):
            return patch
    return target


def is_same(one: Any, other: Any) -> bool:
    """Whether two values are the same JSON: 1 is not 1.0, and the order of fields has no meaning."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _of_fields(base: Mapping[str, Any], target: Mapping[str, Any]) -> dict[str, Any]:
    patch: dict[str, Any] = {key: None for key in base if key not in target}
    for key, value in target.items():
        if key not in base:
            patch[key] = value
        elif not is_same(base[key], value):
            patch[key] = difference(base[key], value)
    return patch


def _naming(items: list[Any]) -> tuple[str, ...] | None:
    return next((path for path in NAMES if items and len(_named(items, path)) == len(items)), None)


def _named(items: list[Any], path: tuple[str, ...]) -> dict[str, Any]:
    """The items that have a name at `path`, by name."""
    return {name: item for item in items if isinstance(name := _at(item, path), str)}


def _at(item: Any, path: tuple[str, ...]) -> Any:
    for field in path:
        item = item.get(field) if isinstance(item, dict) else None
    return item
