# SPDX-License-Identifier: Apache-2.0
"""Users' objects that are not watched: the operator requests them when a pass needs them.

If an object is missing or unusable, the operator polls it once for all objects that wait for it, and
reconciles them only after it has changed.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, NamedTuple

from finetune_operator.engine.client import KubernetesClient
from finetune_operator.engine.errors import ApiError, Rejected
from finetune_operator.engine.refusals import is_refusal, refusal
from finetune_operator.engine.resources import ResourceType
from finetune_operator.plan import Key, Manifest
from finetune_operator.reconcile.inputs.secondaries import (
    SECONDARIES,
    LookedUp,
    Needs,
    Secondary,
    lookups_of,
)

logger = logging.getLogger(__name__)

TICK_SECONDS: Final = 5.0
"""Time between two checks of which polls are due."""
MIN_POLL_SECONDS: Final = 15.0
MAX_POLL_SECONDS: Final = 300.0
"""Bounds of the time between two polls of an object, which is a quarter of the time waited so far."""
BEST_EFFORT_SECONDS: Final = 3.0
"""Timeout of a request that a pass can do without."""
MIN_ANSWERS: Final = 100
"""Number of answers, fresh or not, below which none is forgotten."""
PAUSE_SECONDS: Final = 60.0
"""Time without such requests after the server of their type did not answer one."""


class LookupTarget(NamedTuple):
    """Object to request."""

    type: ResourceType
    namespace: str
    name: str


@dataclass
class _Awaited:
    """Object that other objects wait for."""

    state: str
    """`_state` at the last request."""
    since: float
    due: float
    is_lacking: bool = True
    """Whether the last response can block an object: without the right to read a queue, none does."""
    keys: set[Key] = field(default_factory=set)


class Lookups:
    """Short-lived cache of requests by name or label, and polls of objects that others wait for.

    Args:
        cluster: client of the API server.
        secondaries: table of types, with the time that a response is fresh and when an object is lacking.
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
        self._drop_at = MIN_ANSWERS
        self._requests: dict[LookupTarget, asyncio.Task[Manifest | None]] = {}
        self._paused_until: dict[ResourceType, float] = {}
        self._awaited: dict[LookupTarget, _Awaited] = {}
        self._waits_for: dict[Key, frozenset[LookupTarget]] = {}

    async def get(
        self, type_: ResourceType, namespace: str, name: str, *, reuse: bool = True
    ) -> Manifest | None:
        """The object, None if it does not exist, or a `refusal` if its type is optional.

        Args:
            type_: type of the object.
            namespace: namespace of the object; unused for a type without namespaces.
            name: name of the object, or the value of the type's label or field.
            reuse: whether a fresh response to an earlier request is good enough. A request in flight is
                always shared.

        Raises:
            KeyError: the type is not in the table.
        """
        target, now = _target(type_, namespace, name), self._clock()
        known = self._answers.get(target)
        if reuse and known is not None and self._is_fresh(target, now):
            return known[1]
        self._drop_old_answers(now)
        if not self._types[type_].fresh_seconds:
            return await self._request(target)
        found = await self._share(target)
        self._answers[target] = (now, found)
        return found

    def _drop_old_answers(self, now: float) -> None:
        """Forget answers that are not fresh whenever their number may have doubled: O(1) per request."""
        if len(self._answers) < self._drop_at:
            return
        self._answers = {each: self._answers[each] for each in self._answers if self._is_fresh(each, now)}
        self._drop_at = max(MIN_ANSWERS, 2 * len(self._answers))

    async def _share(self, target: LookupTarget) -> Manifest | None:
        """The response to one request of all passes that need it at the same time."""
        request = self._requests.get(target)
        if request is None:
            request = self._requests[target] = asyncio.create_task(self._request(target))
            request.add_done_callback(lambda _: self._requests.pop(target))
        return await asyncio.shield(request)

    async def _request(self, target: LookupTarget) -> Manifest | None:
        type_ = target.type
        if self._types[type_].is_best_effort:
            return await self._attempt(target)
        if not self._types[type_].is_optional:
            return await self._find(target)
        try:
            found = await self._find(target)
        except Rejected as error:
            # A user without the right gets the same response whether the type is installed or not.
            found = refusal(error.code, error.message)
        if (found is not None and not is_refusal(found)) or await self._cluster.serves(type_):
            return found
        if self._types[type_].any_version and await self._cluster.serves_group(type_):
            message = f"the API server does not have {type_.api_version}, but other versions of it"
            return refusal(HTTPStatus.NOT_IMPLEMENTED, message)
        return refusal(HTTPStatus.NOT_FOUND, f"{type_.plural} of {type_.api_version} are not installed")

    async def _attempt(self, target: LookupTarget) -> Manifest | None:
        """The object; None if it does not exist or cannot be read, for whatever reason."""
        if self._clock() < self._paused_until.get(target.type, 0.0):
            return None
        try:
            async with asyncio.timeout(BEST_EFFORT_SECONDS):
                return await self._find(target)
        except Rejected:
            return None
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            logger.warning("a response with %s has another form: %r", target.type.plural, error)
            self._paused_until[target.type] = self._clock() + PAUSE_SECONDS
            return None
        except (ApiError, TimeoutError):
            self._paused_until[target.type] = self._clock() + PAUSE_SECONDS
            return None

    async def _find(self, target: LookupTarget) -> Manifest | None:
        type_ = self._types[target.type]
        if type_.fields is not None:
            fields = type_.fields.format(target.name)
            found = await self._cluster.last(target.type, target.namespace, fields)
        elif type_.label is None:
            found = await self._cluster.get(*target, type_.subresource)
        else:
            selector = f"{type_.label}={target.name}"
            found = await self._cluster.first(target.type, target.namespace, selector)
        return None if found is None else type_.kept(found)

    async def get_all(self, namespace: str, needs: Needs) -> LookedUp:
        """All objects that a pass for an object of this namespace needs."""
        return {
            type_: {name: await self.get(type_, namespace, name) for name in names}
            for type_, names in needs.items()
        }

    def note(self, key: Key, looked_up: LookedUp) -> None:
        """Record the objects that a pass for `key` read, and wake `key` when one that it lacks has changed.

        `key` waits only for objects that its last pass lacked. A pass that needed none ends the wait.
        """
        lacking = {
            _target(type_, key.namespace, name): found
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
            new = _Awaited(_state(found), now, now + MIN_POLL_SECONDS)
            self._awaited.setdefault(target, new).keys.add(key)

    async def keep_polling(self, wake: Callable[[Key], None]) -> None:
        """Poll the objects that others wait for. Never returns.

        Args:
            wake: called with each key whose awaited object has changed.
        """
        while True:
            await asyncio.sleep(TICK_SECONDS)
            now = self._clock()
            for target in [target for target, awaited in self._awaited.items() if awaited.due <= now]:
                await self._poll(target, wake)

    async def _poll(self, target: LookupTarget, wake: Callable[[Key], None]) -> None:
        try:
            found = await self._request(target)
        except ApiError as error:
            logger.warning(
                "cannot read %s %s of namespace %s: %s",
                target.type.kind,
                target.name,
                target.namespace,
                error,
            )
            found, unknown = None, True
        else:
            unknown = False
        awaited, now = self._awaited.get(target), self._clock()
        if awaited is None:
            return
        awaited.due = now + min(MAX_POLL_SECONDS, max(MIN_POLL_SECONDS, (now - awaited.since) / 4))
        is_lacking = self._types[target.type].is_lacking(found)
        if unknown or (_state(found), is_lacking) == (awaited.state, awaited.is_lacking):
            return
        self._answers[target] = (now, found)
        awaited.state, awaited.is_lacking, awaited.since = _state(found), is_lacking, now
        for key in tuple(awaited.keys):
            wake(key)

    def _is_fresh(self, target: LookupTarget, now: float) -> bool:
        return now - self._answers[target][0] < self._types[target.type].fresh_seconds


def _target(type_: ResourceType, namespace: str, name: str) -> LookupTarget:
    return LookupTarget(type_, namespace if type_.namespaced else "", name)


def _state(found: Manifest | None) -> str:
    """uid, which a re-created object does not have, or the code of a refusal; empty: it does not exist."""
    return "" if found is None else str(found["metadata"].get("uid") or found.get("code", ""))
