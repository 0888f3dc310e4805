# SPDX-License-Identifier: Apache-2.0
"""Canonical JSON, in which equal values have equal bytes and equal hashes, and JSON in the source's order.

What a model reads or writes is never sorted: a chat template prints the fields of tools and arguments in the
order in which it gets them.
"""

import json
from collections.abc import Callable
from typing import Any, Final

OPTIONS: Final[dict[str, Any]] = {"ensure_ascii": False, "separators": (",", ":"), "allow_nan": False}
# Shared, because creating an encoder takes longer than encoding a row.
ENCODER: Final = json.JSONEncoder(sort_keys=True, **OPTIONS)
IN_ORDER: Final = json.JSONEncoder(**OPTIONS)


quoted: Final[Callable[[str], str]] = json.encoder.encode_basestring
"""Encodes a string as `text` does, in a third of the time, for lines of known shape."""


def text(value: Any) -> str:
    """Return JSON with sorted keys and no spaces. Raises ValueError for NaN and infinities."""
    return ENCODER.encode(value)


def encode_in_order(value: Any) -> str:
    """Return JSON as `text` does, but with the keys in the order of the value."""
    return IN_ORDER.encode(value)


def canonicalize(content: str) -> str:
    """Return a JSON text in canonical form."""
    return text(json.loads(content))


def encode(value: Any) -> bytes:
    """Return canonical JSON in UTF-8. Raises UnicodeEncodeError for an unpaired surrogate."""
    return text(value).encode()


def parse(text: str) -> Any:
    """Parse JSON. Raises ValueError, also for NaN, infinities, and more levels than Python can nest."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("the JSON is nested too deeply") from error


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
