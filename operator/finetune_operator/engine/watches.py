"""What the watches say of themselves: their age, and where the first lists are complete.

A watch that froze in silence is told by nothing but the time since it spoke. A watch that is refused is not
silent: it answers, and only a right helps.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Final

from finetune_operator.engine.errors import Rejected

logger = logging.getLogger(__name__)

EVERYWHERE: Final = ""
"""In place of a namespace: what is listed for the whole cluster."""


def watch_name(plural: str, namespace: str) -> str:
    """Name of the watch of one type, in one namespace or everywhere."""
    return f"{plural}/{namespace}" if namespace else plural


def _namespace(name: str) -> str:
    return name.partition("/")[2]


class Watches:
    """When each watch last proved to be alive, and what may be acted on.

    A namespace is complete when the first list of each of its watches, and of those of the whole cluster, is
    complete; from then on it stays so. Where the API server forbids a first list, the namespace is left out
    until it no longer does, and the others are not held up.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._beats: dict[str, float] = {}
        self._answers: dict[str, float] = {}
        self._unsynced: dict[str, set[str]] = {}
        self._forbidden: set[str] = set()
        self._left_out: tuple[str, ...] | None = None
        self._changed = asyncio.Event()
        self._listeners: list[Callable[[str], None]] = []

    def subscribe(self, listener: Callable[[str], None]) -> None:
        """Have the listener told of every namespace that becomes complete."""
        self._listeners.append(listener)

    def expect(self, name: str) -> None:
        """There is such a watch; until its first list is complete its namespace is not."""
        self._beats.setdefault(name, self._clock())
        self._unsynced.setdefault(_namespace(name), set()).add(name)
        self._left_out = None

    def synced(self, name: str) -> None:
        """A list is complete."""
        self.beat(name)
        self._forbidden.discard(name)
        if self.is_known(name):
            return
        namespace = _namespace(name)
        self._unsynced[namespace].discard(name)
        self._left_out = None
        self._changed.set()
        for each in self._namespaces() if namespace == EVERYWHERE else (namespace,):
            if self.complete(each):
                self._notify(each)

    def beat(self, name: str) -> None:
        """The watch proved to be alive: by an event, a bookmark, or a list that agreed with it."""
        self._beats[name] = self._answers[name] = self._clock()

    def refused(self, name: str, error: Rejected) -> None:
        """The API server refuses the list or the watch: an answer, so nothing is frozen, but no news."""
        self._answers[name] = self._clock()
        if error.code != HTTPStatus.FORBIDDEN or self.is_known(name) or name in self._forbidden:
            return
        self._forbidden.add(name)
        self._changed.set()
        namespace = _namespace(name)
        logger.warning(
            "%s may not be listed, so nothing is done in %s: helm upgrade puts the chart's rights back; a"
            " namespace that is gone for good has to be taken out of watchNamespaces",
            name,
            f"namespace {namespace}" if namespace else "any namespace",
        )

    async def all_settled(self) -> None:
        """Wait until nothing is waited for."""
        while self.waiting_for:
            self._changed.clear()
            await self._changed.wait()

    def complete(self, namespace: str) -> bool:
        """Whether all lists that a look at an object of this namespace relies on are complete."""
        return not self._unsynced.get(EVERYWHERE) and not self._unsynced.get(namespace)

    def is_known(self, name: str) -> bool:
        """Whether the first list of this watch is complete."""
        return name not in self._unsynced.get(_namespace(name), ())

    @property
    def left_out(self) -> tuple[str, ...]:
        """Namespaces that are not complete; every pass asks."""
        if self._left_out is None:
            self._left_out = tuple(each for each in self._namespaces() if each and not self.complete(each))
        return self._left_out

    @property
    def waiting_for(self) -> tuple[str, ...]:
        """Watches whose first list has to be complete before there is anything to act on.

        Forbidden ones are among them only where no namespace is complete.
        """
        unsynced = {name for names in self._unsynced.values() for name in names}
        served = any(each and self.complete(each) for each in self._namespaces())
        return tuple(sorted(unsynced - self._forbidden if served else unsynced))

    def ages(self) -> Mapping[str, float]:
        """Seconds since each watch proved to be alive."""
        now = self._clock()
        return {name: now - beat for name, beat in self._beats.items()}

    def silences(self) -> Mapping[str, float]:
        """Seconds since anything, a refusal included, was heard of each watch that had a complete list."""
        now = self._clock()
        return {name: now - answer for name, answer in self._answers.items() if self.is_known(name)}

    def _namespaces(self) -> list[str]:
        return sorted(self._unsynced)

    def _notify(self, namespace: str) -> None:
        for listener in self._listeners:
            listener(namespace)
