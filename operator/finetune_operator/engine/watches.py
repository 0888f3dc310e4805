# SPDX-License-Identifier: Apache-2.0
"""State of the watches: when each was last alive, and which namespaces have complete first lists.

A frozen watch shows no error: only the time since its last event reveals it. A watch that is refused is not
frozen: it gets responses, and needs a right.
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
"""Used instead of a namespace for lists of the whole cluster."""


def watch_name(plural: str, namespace: str) -> str:
    """Name of the watch of one type, in one namespace or everywhere."""
    return f"{plural}/{namespace}" if namespace else plural


def _namespace(name: str) -> str:
    return name.partition("/")[2]


class Watches:
    """When each watch was last alive, and which namespaces may be reconciled.

    A namespace is complete when the first lists of its watches, and of the watches of the whole cluster, are
    complete. It then stays complete. If the API server forbids a first list, the namespace is left out until
    the list is allowed; other namespaces do not wait for it.
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
        """Call the listener with every namespace that becomes complete."""
        self._listeners.append(listener)

    def expect(self, name: str) -> None:
        """Register a watch. Its namespace is not complete before its first list is."""
        self._beats.setdefault(name, self._clock())
        self._unsynced.setdefault(_namespace(name), set()).add(name)
        self._left_out = None

    def synced(self, name: str) -> None:
        """Record a complete list."""
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
        """Record that the watch is alive: by an event, a bookmark, or a list that found no missed change."""
        self._beats[name] = self._answers[name] = self._clock()

    def refused(self, name: str, error: Rejected) -> None:
        """Record that the API server refused the list or the watch, so that it does not count as frozen."""
        self._answers[name] = self._clock()
        if error.code != HTTPStatus.FORBIDDEN or self.is_known(name) or name in self._forbidden:
            return
        self._forbidden.add(name)
        self._changed.set()
        namespace = _namespace(name)
        logger.warning(
            "the operator may not list %s, so it does nothing in %s: helm upgrade restores the chart's roles;"
            " remove a deleted namespace from watchNamespaces",
            name,
            f"namespace {namespace}" if namespace else "any namespace",
        )

    async def all_settled(self) -> None:
        """Return when `waiting_for` is empty."""
        while self.waiting_for:
            self._changed.clear()
            await self._changed.wait()

    def complete(self, namespace: str) -> bool:
        """Whether all lists that a pass for an object of this namespace needs are complete."""
        return not self._unsynced.get(EVERYWHERE) and not self._unsynced.get(namespace)

    def is_known(self, name: str) -> bool:
        """Whether the first list of this watch is complete."""
        return name not in self._unsynced.get(_namespace(name), ())

    @property
    def left_out(self) -> tuple[str, ...]:
        """Namespaces that are not complete. Cached, because every pass reads it."""
        if self._left_out is None:
            self._left_out = tuple(each for each in self._namespaces() if each and not self.complete(each))
        return self._left_out

    @property
    def waiting_for(self) -> tuple[str, ...]:
        """Watches whose first list must be complete before any pass.

        Forbidden lists are included only if no namespace is complete.
        """
        unsynced = {name for names in self._unsynced.values() for name in names}
        served = any(each and self.complete(each) for each in self._namespaces())
        return tuple(sorted(unsynced - self._forbidden if served else unsynced))

    def ages(self) -> Mapping[str, float]:
        """Seconds since each watch was last known to be alive."""
        now = self._clock()
        return {name: now - beat for name, beat in self._beats.items()}

    def age(self, plural: str, namespace: str) -> float:
        """Seconds since the watch of a type was last alive, in the namespace or everywhere; 0 without one."""
        now, names = self._clock(), (watch_name(plural, namespace), plural)
        return now - max((self._beats[name] for name in names if name in self._beats), default=now)

    def silences(self) -> Mapping[str, float]:
        """Seconds since the last event, list or refusal of each watch that has had a complete list."""
        now = self._clock()
        return {name: now - answer for name, answer in self._answers.items() if self.is_known(name)}

    def _namespaces(self) -> list[str]:
        return sorted(self._unsynced)

    def _notify(self, namespace: str) -> None:
        for listener in self._listeners:
            listener(namespace)
