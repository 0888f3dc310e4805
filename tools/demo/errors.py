"""How a step of the demo ends that did not succeed."""

from collections.abc import Sequence


class DemoError(Exception):
    """A step failed.

    Attributes:
        look_at: commands that show more.
        details: lines of what was seen, such as the end of a pod's log.
    """

    def __init__(self, message: str, look_at: Sequence[str] = (), details: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.look_at = tuple(look_at)
        self.details = tuple(details)
