# SPDX-License-Identifier: Apache-2.0
"""Regular expressions as the API server reads them: those of RE2, with classes of ASCII."""

import functools
import re
from typing import Any, Final

try:
    import re2
except ImportError:  # google-re2 has no package for this platform
    re2 = None

_ERROR: Final[type[Exception]] = re.error if re2 is None else re2.error


@functools.cache
def _compile(pattern: str) -> Any:
    if re2 is None:
        # In Python, $ matches before a last newline too. Escapes and classes stay as they are.
        parts = r"\\.|\[\^?\]?(?:\\.|[^\]])*\]|\$"
        end_only = re.sub(parts, lambda part: r"\Z" if part[0] == "$" else part[0], pattern)
        return re.compile(end_only, re.ASCII)
    options = re2.Options()
    options.log_errors = False
    return re2.compile(pattern, options)


def is_match(text: str, pattern: str) -> bool:
    """Whether the pattern occurs in the text.

    Raises:
        ValueError: the pattern is not a regular expression.
    """
    try:
        return _compile(pattern).search(text) is not None
    except _ERROR as error:
        raise ValueError(f"{pattern} is not a regular expression: {error}") from error
