"""Objects that are requested when a pass needs them: they are the users' and are not watched.

An object that keeps others waiting is requested again from time to time, once for all of them, and they are
looked at only when it has changed.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from finetune_operator.engine.client import KubernetesClient
from finetune_operator.engine.errors import ApiError
from finetune_operator.engine.resources import ResourceType
from finetune_operator.plan import Key, Manifest
from finetune_operator.reconcile.inputs.secondaries import SECONDARIES, LookedUp, Needs, Secondary, lookups_of

logger = logging.getLogger(__name__)

TICK_SECONDS: Final = 5.0
"""Between two looks at which requests are due."""
MIN_SECONDS: Final = 15.0
MAX_SECONDS: Final = 300.0
"""Bounds of the seconds between two requests for what is waited for; a quarter of the time waited."""


class LookupTarget(NamedTuple):
    """What is requested."""

    type: ResourceType
    namespace: str
    name: str


@dataclass
class _Awaited:
    """Something that objects wait for."""

    seen: str
    since: float
    due: float
    keys: set[Key] = field(default_factory=set)


class Lookups:
    """Short-lived answers to requests by name, and word of what objects wait for.

    Args:
        cluster: where the objects are.
        secondaries: says of each type how long an answer is fresh, and whether it keeps objects waiting.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        cluster: KubernetesClient,
        secondaries: tuple[Secondary, ...] = SECONDARIES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster = cluster
        self._types = {each.type: each for each in lookups_of(secondaries)}
        self._clock = clock
        self._answers: dict[LookupTarget, tuple[float, Manifest | None]] = {}
        self._awaited: dict[LookupTarget, _Awaited] = {}
        self._waits_for: dict[Key, frozenset[LookupTarget]] = {}

    async def get(self, type_: ResourceType, namespace: str, name: str) -> Manifest | None:
        """The object, or None where there is none.

        Raises:
            KeyError: the type is not in the table.
        """
        target, now = LookupTarget(type_, namespace, name), self._clock()
        known = self._answers.get(target)
        if known is not None and self._is_fresh(target, now):
            return known[1]
        self._answers = {each: self._answers[each] for each in self._answers if self._is_fresh(each, now)}
        found = await self._cluster.get(type_, namespace, name)
        if self._types[type_].fresh_seconds:
            self._answers[target] = (now, found)
        return found

    async def get_all(self, namespace: str, needs: Needs) -> LookedUp:
        """Everything that a pass over an object of this namespace needs."""
        return {
            type_: {name: await self.get(type_, namespace, name) for name in names}
            for type_, names in needs.items()
        }

    def note(self, key: Key, looked_up: LookedUp) -> None:
        """What a pass over `key` was given: the object is woken when what it lacks has changed.

        It waits for what the last pass lacked only; a pass that needed nothing ends the wait.
        """
        lacking = {
            LookupTarget(type_, key.namespace, name): found
            for type_, objects in looked_up.items()
            for name, found in objects.items()
            if self._types[type_].is_lacking(found)
        }
        for target in self._waits_for.pop(key, frozenset()) - lacking.keys():
            awaited = self._awaited[target]
            awaited.keys.discard(key)
            if not awaited.keys:
                del self._awaited[target]
        if lacking:
            self._waits_for[key] = frozenset(lacking)
        now = self._clock()
        for target, found in lacking.items():
            new = _Awaited(_identity(found), now, now + MIN_SECONDS)
            self._awaited.setdefault(target, new).keys.add(key)

    async def keep_polling(self, wake: Callable[[Key], None]) -> None:
        """Request what is waited for; never ends by itself.

        Args:
            wake: called with each object that waits for something that has changed.
        """
        while True:
            await asyncio.sleep(TICK_SECONDS)
            now = self._clock()
            for target in [target for target, awaited in self._awaited.items() if awaited.due <= now]:
                await self._poll(target, wake)

    async def _poll(self, target: LookupTarget, wake: Callable[[Key], None]) -> None:
        try:
            found = await self._cluster.get(*target)
        except ApiError as error:
            logger.warning(
                "%s %s of namespace %s: %s", target.type.kind, target.name, target.namespace, error
            )
            found, unknown = None, True
        else:
            unknown = False
        awaited, now = self._awaited.get(target), self._clock()
        if awaited is None:
            return
        awaited.due = now + min(MAX_SECONDS, max(MIN_SECONDS, (now - awaited.since) / 4))
        if unknown or _identity(found) == awaited.seen:
            return
        self._answers[target] = (now, found)
        awaited.seen, awaited.since = _identity(found), now
        for key in tuple(awaited.keys):
            wake(key)

    def _is_fresh(self, target: LookupTarget, now: float) -> bool:
        return now - self._answers[target][0] < self._types[target.type].fresh_seconds


def _identity(found: Manifest | None) -> str:
    """Another object of the name has another uid."""
    uid: str = "" if found is None else found["metadata"].get("uid", "")
    return uid
