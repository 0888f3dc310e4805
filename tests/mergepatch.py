# SPDX-License-Identifier: Apache-2.0
"""JSON merge patch (RFC 7386), as `kubectl patch --type merge` applies it."""

from typing import Any


def merged(target: Any, patch: Any) -> Any:
    """`target` with `patch` applied: null removes a field, a list replaces a list. Does not change either."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result
