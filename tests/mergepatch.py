"""JSON merge patch (RFC 7386), as `kubectl patch --type merge` applies it."""

from typing import Any


def merged(target: Any, patch: Any) -> Any:
    """`target` with `patch` applied: null removes, lists are replaced; neither is changed."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result
