# SPDX-License-Identifier: Apache-2.0
"""Regular expressions of users, by RE2: the time to match grows with the text and not exponentially."""

from functools import cache
from typing import Any

import re2


@cache
def compiled(expression: str) -> Any:
    """Return the compiled expression. Raises ValueError for one that RE2 does not support."""
    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(expression, options)
    except re2.error as error:
        reason = error.args[0].decode() if isinstance(error.args[0], bytes) else str(error)
        raise ValueError(f"RE2 does not support it: {reason}") from error


def occurs(expression: str, text: str) -> bool:
    """Whether a part of the text matches, as in a JSON Schema. Raises ValueError as `compiled` does."""
    # JSON can have half of a surrogate pair, which UTF-8 cannot.
    return compiled(expression).search(text.encode(errors="replace").decode()) is not None


class AnswerPattern:
    """A regular expression for a whole answer."""

    def __init__(self, expression: str) -> None:
        """Raises ValueError for an expression that RE2 does not support."""
        self._compiled = compiled(expression)

    def matches(self, answer: str) -> bool:
        """Whether the whole answer matches; `.` does not match a line break."""
        return self._compiled.fullmatch(answer) is not None
