"""Other installations of this operator that are at work on the same namespaces.

The Lease of each installation says which namespaces it watches. Whoever is at work keeps working: an
installation that starts beside it takes no Lease until the other one is gone. Where two begin at the same
time, the one whose Lease was acquired first stays, which both read alike.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final, NamedTuple

from finetune_operator.engine.client import KubernetesClient
from finetune_operator.engine.errors import ApiError, Rejected
from finetune_operator.engine.resources import LEASE
from finetune_operator.plan import Manifest

logger = logging.getLogger(__name__)

EVERYWHERE: Final = "*"
RECHECK_SECONDS: Final = 30.0
"""Between two looks of an installation that is at work."""


@dataclass(frozen=True, slots=True)
class Mark:
    """How a Lease tells that it is an installation's, and what that watches."""

    label: str
    annotation: str

    def metadata(self, namespaces: Collection[str]) -> Manifest:
        """Labels and annotations of the Lease of an installation that watches these namespaces, or all."""
        watched = ",".join(sorted(namespaces)) or EVERYWHERE
        return {"labels": {self.label: "true"}, "annotations": {self.annotation: watched}}

    def watched(self, lease: Manifest) -> frozenset[str]:
        """What the Lease says; EVERYWHERE alone where it says nothing."""
        text = (lease["metadata"].get("annotations") or {}).get(self.annotation) or EVERYWHERE
        return frozenset(text.split(","))


class _Seen(NamedTuple):
    version: str
    at: float


class Installations:
    """What the Leases of all installations say.

    As for the own Lease, clocks of others are never compared with ours: another installation is at work as
    long as its Lease is held and changes.

    Args:
        cluster: where they are.
        namespace, name: of the own Lease.
        mark: of every Lease of an installation.
        namespaces: what this one watches; empty for all.
        patience_seconds: after its last renewal, for which another installation counts as being at work.
        clock: monotonic seconds.

    Attributes:
        other: the Lease, as `namespace/name`, that this installation waits for or gives way to, or several
            with commas between them; empty: none.
    """

    def __init__(
        self,
        cluster: KubernetesClient,
        namespace: str,
        name: str,
        *,
        mark: Mark,
        namespaces: Collection[str],
        patience_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster = cluster
        self._own = (namespace, name)
        self._mark = mark
        self._watched = frozenset(namespaces) or frozenset({EVERYWHERE})
        self._patience_seconds = patience_seconds
        self._clock = clock
        self._seen: dict[tuple[str, str], _Seen] = {}
        self._is_refused = False
        self.other = ""

    async def wait_until_alone(self) -> None:
        """Return once no other installation is at work on the same namespaces."""
        while True:
            if not await self._finds(is_at_work=False):
                return
            await asyncio.sleep(self._patience_seconds / 4)

    async def is_preceded(self) -> bool:
        """Whether, beside this installation, another one is at work that acquired its Lease earlier."""
        return await self._finds(is_at_work=True)

    async def wait_until_preceded(self) -> None:
        """Return when this installation, which is at work, has to give way to another one.

        A term begins with `is_preceded`, so the first list here comes RECHECK_SECONDS later.
        """
        while True:
            await asyncio.sleep(RECHECK_SECONDS)
            if await self._finds(is_at_work=True):
                return

    async def _finds(self, *, is_at_work: bool) -> bool:
        try:
            others = await self._others(is_at_work=is_at_work)
        except ApiError as error:
            self._complain(error)
            return False
        self._is_refused = False
        other = ", ".join(map("/".join, others))
        if other and other != self.other:
            logger.error(
                "another installation of this operator is at work on the same namespaces (lease %s)."
                " This one does nothing until that one is gone: uninstall one of them, or give them"
                " watchNamespaces that do not overlap",
                other,
            )
        elif self.other and not other:
            logger.info("the other installation, with the lease %s, is not at work any more", self.other)
        self.other = other
        return bool(other)

    def _complain(self, error: ApiError) -> None:
        if isinstance(error, Rejected) and self._is_refused:
            return
        self._is_refused = isinstance(error, Rejected)
        logger.warning("other installations of this operator would not be noticed: %s", error)

    async def _others(self, *, is_at_work: bool) -> list[tuple[str, str]]:
        """Who is at work besides: all, or of an installation that is at work itself those before it."""
        leases: list[Manifest] = []
        async for page, _ in self._cluster.pages(LEASE, "", self._mark.label):
            leases += page
        live = {_key(lease): _acquired(lease) for lease in leases if self._is_live(lease)}
        own = next((_acquired(lease) for lease in leases if _key(lease) == self._own), "")
        overlapping = [
            key for key in map(_key, filter(self._overlaps, leases)) if key != self._own and key in live
        ]
        if is_at_work:
            overlapping = [key for key in overlapping if (live[key], key) < (own, self._own)]
        return sorted(overlapping)

    def _is_live(self, lease: Manifest) -> bool:
        key, version = _key(lease), lease["metadata"]["resourceVersion"]
        seen = self._seen.get(key)
        is_news = seen is None or seen.version != version
        if lease["spec"].get("holderIdentity") and is_news:
            seen = self._seen[key] = _Seen(version, self._clock())
        # One that was released is waited for a while: its next process takes it at once in a rolling update.
        return seen is not None and self._clock() - seen.at < self._patience_seconds

    def _overlaps(self, lease: Manifest) -> bool:
        watched = self._mark.watched(lease)
        return EVERYWHERE in watched | self._watched or bool(watched & self._watched)


def _key(lease: Manifest) -> tuple[str, str]:
    return lease["metadata"]["namespace"], lease["metadata"]["name"]


def _acquired(lease: Manifest) -> str:
    """A `MicroTime`: earlier ones sort before later ones."""
    return str(lease["spec"].get("acquireTime") or "")
