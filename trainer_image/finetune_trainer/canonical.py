"""One spelling for equal JSON values, so that equal values have equal bytes and equal hashes."""

import json
from typing import Any, Final

ENCODER: Final = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)
"""One for all: making it takes longer than encoding a row."""


def text(value: Any) -> str:
    """JSON with sorted keys and no spaces. Raises ValueError for NaN and infinities."""
    return ENCODER.encode(value)


def encode(value: Any) -> bytes:
    """The same in UTF-8. Raises UnicodeEncodeError for an unpaired surrogate."""
    return text(value).encode()
