"""PersistentVolumeClaims, looked up when a pass needs them: they are the users' and are not watched.

A claim that keeps objects waiting is looked up again from time to time, once for all of them, and they are
looked at only when it has changed.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from finetune_operator.engine.cluster import Cluster
from finetune_operator.engine.errors import ApiError
from finetune_operator.engine.resources import CLAIM
from finetune_operator.plan import Key, Manifest

logger = logging.getLogger(__name__)

FRESH: Final = 10.0
"""Seconds for which an answer is used again, so that a thousand runs do not ask a thousand times."""
TICK: Final = 5.0
"""Seconds between two looks at which claims are due."""
SHORTEST: Final = 15.0
LONGEST: Final = 300.0
"""Bounds of the seconds between two requests for a claim that is waited for; a quarter of the time waited."""

ClaimName = tuple[str, str]
"""Namespace and name."""


@dataclass
class _Awaited:
    """A claim that objects wait for."""

    seen: str
    since: float
    due: float
    keys: set[Key] = field(default_factory=set)


class Claims:
    """Short-lived answers to "what is this claim?", and word of the claims that objects wait for."""

    def __init__(self, cluster: Cluster, clock: Callable[[], float] = time.monotonic) -> None:
        self._cluster = cluster
        self._clock = clock
        self._answers: dict[ClaimName, tuple[float, Manifest | None]] = {}
        self._awaited: dict[ClaimName, _Awaited] = {}
        self._waits_for: dict[Key, frozenset[ClaimName]] = {}

    async def get(self, namespace: str, name: str) -> Manifest | None:
        """The claim, or None where there is none."""
        now = self._clock()
        known = self._answers.get((namespace, name))
        if known is not None and now - known[0] < FRESH:
            return known[1]
        self._answers = {key: answer for key, answer in self._answers.items() if now - answer[0] < FRESH}
        claim = await self._cluster.get(CLAIM, namespace, name)
        self._answers[namespace, name] = (now, claim)
        return claim

    def note(self, key: Key, claims: Mapping[str, Manifest | None]) -> None:
        """What a pass over `key` was given, by name: it is woken when what it lacks has changed.

        It waits for those of the last pass only; a pass that needed none ends the wait.
        """
        lacking = {(key.namespace, name): claim for name, claim in claims.items() if not _is_shared(claim)}
        for name in self._waits_for.pop(key, frozenset()) - lacking.keys():
            awaited = self._awaited[name]
            awaited.keys.discard(key)
            if not awaited.keys:
                del self._awaited[name]
        if lacking:
            self._waits_for[key] = frozenset(lacking)
        now = self._clock()
        for name, claim in lacking.items():
            new = _Awaited(_identity(claim), now, now + SHORTEST)
            self._awaited.setdefault(name, new).keys.add(key)

    async def keep_looking(self, wake: Callable[[Key], None]) -> None:
        """Look up the claims that are waited for; never ends by itself.

        Args:
            wake: called with each object that waits for a claim that has changed.
        """
        while True:
            await asyncio.sleep(TICK)
            now = self._clock()
            for name in [name for name, awaited in self._awaited.items() if awaited.due <= now]:
                await self._look(name, wake)

    async def _look(self, name: ClaimName, wake: Callable[[Key], None]) -> None:
        try:
            claim = await self._cluster.get(CLAIM, *name)
        except ApiError as error:
            logger.warning("PersistentVolumeClaim %s of namespace %s: %s", name[1], name[0], error)
            claim, unknown = None, True
        else:
            unknown = False
        awaited, now = self._awaited.get(name), self._clock()
        if awaited is None:
            return
        awaited.due = now + min(LONGEST, max(SHORTEST, (now - awaited.since) / 4))
        if unknown or _identity(claim) == awaited.seen:
            return
        self._answers[name] = (now, claim)
        awaited.seen, awaited.since = _identity(claim), now
        for key in tuple(awaited.keys):
            wake(key)


def _is_shared(claim: Manifest | None) -> bool:
    """Whether nothing can be lacking: pods on all nodes can mount it."""
    return claim is not None and "ReadWriteMany" in (claim.get("spec", {}).get("accessModes") or ())


def _identity(claim: Manifest | None) -> str:
    """A claim's access modes never change; another claim of the name has another uid."""
    uid: str = "" if claim is None else claim["metadata"].get("uid", "")
    return uid
