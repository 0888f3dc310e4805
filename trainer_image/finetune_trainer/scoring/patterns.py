"""Regular expressions of users, by RE2: the time to match grows with the text and not exponentially."""

import re2


class AnswerPattern:
    """A regular expression for a whole answer."""

    def __init__(self, expression: str) -> None:
        """Raises ValueError for an expression that RE2 does not support."""
        options = re2.Options()
        options.log_errors = False
        try:
            self._compiled = re2.compile(expression, options)
        except re2.error as error:
            reason = error.args[0].decode() if isinstance(error.args[0], bytes) else str(error)
            raise ValueError(f"RE2 does not support it: {reason}") from error

    def matches(self, answer: str) -> bool:
        """Whether the whole answer matches; `.` does not match a line break."""
        return self._compiled.fullmatch(answer) is not None
