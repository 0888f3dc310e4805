# SPDX-License-Identifier: Apache-2.0
"""Users' objects that are not watched: the operator requests them when a pass needs them.

Objects of a type with a `SharedList` come from one list of their namespace, which all passes share. If an
object is missing or unusable, the operator polls it once for all objects that wait for it, and reconciles
these only after it has changed.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, NamedTuple

from finetune_operator.engine.client import KubernetesClient
from finetune_operator.engine.errors import ApiError, PageTooLarge, Rejected, is_refusal, refusal
from finetune_operator.engine.resources import ResourceType
from finetune_operator.plan import Key, Manifest
from finetune_operator.reconcile.inputs.related_types import (
    RELATED_TYPES,
    LookedUp,
    Lookup,
    Needs,
    RelatedType,
    SharedList,
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
WHOLE_LIST: Final = ""
"""Name of a target that is a whole list."""
TOO_LARGE: Final = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
"""Code of the refusal in place of a list that is too long or too large."""
MAX_LISTED: Final = 10_000
"""Objects that are read of a list. Tenants can create any number of them."""
MAX_PAGE_BYTES: Final = 16 << 20
"""Size of a page of a list. 100 objects of other tenants could have 150 MB."""
LIST_SECONDS: Final = 20.0
"""Timeout of a list that passes can do without."""
PATIENCE_SECONDS: Final = 0.5
"""Time for which passes wait for a list that they can do without, or of which they have an earlier one.

A long list of one namespace would otherwise stop all workers.
"""
WRITTEN_SECONDS: Final = 300.0
"""Time for which the last write of an object is remembered. No list is used for so long."""
MAX_AGE: Final = 1.5
"""Age at which an earlier list is of no use, as a multiple of the time for which it is fresh."""


class LookupTarget(NamedTuple):
    """Object to request, or the list of a namespace."""

    type: ResourceType
    namespace: str
    name: str


Answer = tuple[float, Manifest | None]
"""When an object or list was requested, in seconds of the clock, and the response."""


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
        secondaries: tuple[RelatedType, ...] = RELATED_TYPES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster = cluster
        self._types = {each.type: each for each in lookups_of(secondaries)}
        self._clock = clock
        self._answers: dict[LookupTarget, Answer] = {}
        self._drop_at = MIN_ANSWERS
        self._lists: dict[LookupTarget, Answer] = {}
        self._requests: dict[LookupTarget, asyncio.Task[Answer]] = {}
        self._began: dict[LookupTarget, float] = {}
        """When these requests began."""
        self._written: dict[LookupTarget, float] = {}
        """When a pass last wrote an object that a list may have."""
        self._written_types = {
            entry.type.kind: entry.type
            for entry in self._types.values()
            if entry.shared is not None and entry.shared.answers is not None
        }
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
        if self._types[type_].shared is not None:
            return await self._listed(self._types[type_], namespace, name)
        target, now = _target(type_, namespace, name), self._clock()
        known = self._answers.get(target)
        if reuse and known is not None and self._is_fresh(target, now):
            return known[1]
        self._drop_old_answers(now)
        return (await asyncio.shield(self._share(target)))[1]

    def _drop_old_answers(self, now: float) -> None:
        """Forget answers that are not fresh whenever their number may have doubled: O(1) per request."""
        if len(self._answers) < self._drop_at:
            return
        self._answers = {each: self._answers[each] for each in self._answers if self._is_fresh(each, now)}
        self._drop_at = max(MIN_ANSWERS, 2 * len(self._answers))

    def written(self, manifests: Iterable[Manifest]) -> None:
        """Record that a pass is about to write these objects: earlier lists do not answer for them."""
        now = self._clock()
        for manifest in manifests:
            type_ = self._written_types.get(manifest["kind"])
            if type_ is not None:
                metadata = manifest["metadata"]
                self._written = {each: at for each, at in self._written.items() if now - at < WRITTEN_SECONDS}
                self._written[LookupTarget(type_, metadata["namespace"], metadata["name"])] = now

    async def _listed(self, entry: Lookup, namespace: str, name: str) -> Manifest | None:
        """The object from the list of its namespace, or by its name if the list does not answer for it."""
        target = LookupTarget(entry.type, namespace, name)
        began, listed = await self._list(entry, namespace)
        is_refused = listed is not None and is_refusal(listed)
        answers = entry.shared.answers if entry.shared is not None else None
        if listed is None or (is_refused and (answers is None or listed["code"] != TOO_LARGE)):
            return listed
        found: Manifest | None = None if is_refused else listed["objects"].get(name)
        if answers is not None:
            is_current = self._written.get(target, -math.inf) < began
            return found if is_current and answers(found) else await self._request(target)
        if found is None and not listed["isComplete"] and not entry.is_best_effort:
            message = f"namespace {namespace} has more than {MAX_LISTED} {entry.type.plural}"
            return refusal(TOO_LARGE, message)
        return found

    async def _list(self, entry: Lookup, namespace: str) -> Answer:
        """The newest list, and when it was requested. A pass waits long only if it cannot do without."""
        target, now = LookupTarget(entry.type, namespace, WHOLE_LIST), self._clock()
        self._drop_old_lists(now)
        known = self._lists.get(target)
        if known is not None and now - known[0] < entry.fresh_seconds:
            return known
        request = self._share(target)
        if known is not None or entry.is_best_effort:
            patience = self._began[target] + PATIENCE_SECONDS - now
            await asyncio.wait({request}, timeout=max(0.0, patience))
            if not request.done():
                return known or (now, None)
        return await asyncio.shield(request)

    def _share(self, target: LookupTarget) -> asyncio.Task[Answer]:
        """One request of all passes that need its response at the same time."""
        request = self._requests.get(target)
        if request is None:
            began = self._began[target] = self._clock()
            request = self._requests[target] = asyncio.create_task(self._answer(target, began))
            request.add_done_callback(lambda done: self._end(target, done))
        return request

    async def _answer(self, target: LookupTarget, began: float) -> Answer:
        answer = began, await self._request(target)
        if target.name == WHOLE_LIST:
            self._lists[target] = answer
        elif self._types[target.type].fresh_seconds:
            self._answers[target] = answer
        return answer

    def _end(self, target: LookupTarget, request: asyncio.Task[Answer]) -> None:
        del self._requests[target], self._began[target]
        if not request.cancelled():
            # Marks it as seen: the passes that requested a list may have ended without it.
            request.exception()

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
        except PageTooLarge:
            limit = f"{MAX_PAGE_BYTES >> 20} MiB"
            message = (
                f"the {type_.plural} of namespace {target.namespace} are too large: a page has over {limit}"
            )
            return refusal(TOO_LARGE, message)
        if (found is not None and not is_refusal(found)) or await self._cluster.serves(type_):
            return found
        if self._types[type_].any_version and await self._cluster.serves_group(type_):
            message = f"the API server does not have {type_.api_version}, but other versions of it"
            return refusal(HTTPStatus.NOT_IMPLEMENTED, message)
        return refusal(HTTPStatus.NOT_FOUND, f"{type_.plural} of {type_.api_version} are not installed")

    async def _attempt(self, target: LookupTarget) -> Manifest | None:
        """The object; None if it does not exist or cannot be read, for whatever reason.

        A list that cannot be read counts as empty for as long as it would be fresh: what one namespace has
        must not keep the lists of others from being read.
        """
        is_list = target.name == WHOLE_LIST
        if self._clock() < self._paused_until.get(target.type, 0.0):
            return None
        try:
            async with asyncio.timeout(LIST_SECONDS if is_list else BEST_EFFORT_SECONDS):
                return await self._find(target)
        except Rejected:
            return None
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            logger.warning("a response with %s has another form: %r", target.type.plural, error)
        except (ApiError, TimeoutError) as error:
            logger.debug("no response with %s: %r", target.type.plural, error)
        if not is_list:
            self._paused_until[target.type] = self._clock() + PAUSE_SECONDS
        return None

    async def _find(self, target: LookupTarget) -> Manifest | None:
        type_ = self._types[target.type]
        if target.name == WHOLE_LIST and type_.shared is not None:
            return await self._read_list(type_, type_.shared, target.namespace)
        found = await self._cluster.get(*target, type_.subresource)
        return None if found is None else type_.kept(found)

    async def _read_list(self, type_: Lookup, shared: SharedList, namespace: str) -> Manifest:
        """The objects of a namespace by the names by which passes find them, in the form of one object."""
        objects: dict[str, Manifest] = {}
        number = 0
        pages = self._cluster.pages(
            type_.type,
            namespace,
            shared.selector,
            shared.fields,
            page_size=shared.page_size,
            max_page_bytes=MAX_PAGE_BYTES,
        )
        async with contextlib.aclosing(pages):
            async for page, _ in pages:
                objects |= {name: type_.kept(each) for each in page if (name := shared.name_of(each))}
                number += len(page)
                if number >= MAX_LISTED:
                    break
        return {"kind": "List", "metadata": {}, "objects": objects, "isComplete": number < MAX_LISTED}

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
            self._drop_old_lists(now)
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

    def _drop_old_lists(self, now: float) -> None:
        """Forget lists that no pass may use any more. There is one per namespace in which something waits."""
        for target, (at, _) in tuple(self._lists.items()):
            if now - at >= MAX_AGE * self._types[target.type].fresh_seconds:
                del self._lists[target]

    def _is_fresh(self, target: LookupTarget, now: float) -> bool:
        return now - self._answers[target][0] < self._types[target.type].fresh_seconds


def _target(type_: ResourceType, namespace: str, name: str) -> LookupTarget:
    return LookupTarget(type_, namespace if type_.namespaced else "", name)


def _state(found: Manifest | None) -> str:
    """uid, which a re-created object does not have, or the code of a refusal; empty: it does not exist."""
    return "" if found is None else str(found["metadata"].get("uid") or found.get("code", ""))
