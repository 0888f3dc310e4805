# SPDX-License-Identifier: Apache-2.0
"""Other active installations of this operator that watch the same namespaces.

A marked ClusterRoleBinding names the Lease of each installation and the namespaces that it watches. Only
administrators may write ClusterRoleBindings, but everyone with the role `edit` in one namespace may write
Leases there: a Lease that no ClusterRoleBinding names is never read.

An active installation stays active: a new one does not acquire its Lease until the other is gone. If two
start at the same time, the one that acquired its Lease first stays active. Both read the same Leases, so they
come to the same result.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final, NamedTuple

from finetune_operator.engine.client import KubernetesClient
from finetune_operator.engine.errors import ApiError, Rejected
from finetune_operator.engine.resources import CLUSTER_ROLE_BINDING, LEASE
from finetune_operator.plan import Manifest

logger = logging.getLogger(__name__)

EVERYWHERE: Final = "*"
RECHECK_SECONDS: Final = 30.0
"""Seconds between two checks by an active installation."""


LeaseName = tuple[str, str]
"""Namespace and name of a Lease."""


@dataclass(frozen=True, slots=True)
class Mark:
    """Label and annotations of the ClusterRoleBinding of each installation.

    Attributes:
        label: label that selects these ClusterRoleBindings.
        lease: annotation with the Lease, as `namespace/name`.
        namespaces: annotation with the watched namespaces, separated by commas, or EVERYWHERE.
    """

    label: str
    lease: str
    namespaces: str

    def read(self, binding: Manifest) -> tuple[LeaseName, frozenset[str]] | None:
        """The Lease of the installation and its namespaces; None if the ClusterRoleBinding names no Lease."""
        annotations = binding["metadata"].get("annotations") or {}
        namespace, _, name = annotations.get(self.lease, "").partition("/")
        if not (namespace and name):
            return None
        watched = annotations.get(self.namespaces) or EVERYWHERE
        return (namespace, name), frozenset(watched.split(","))


class _Renewal(NamedTuple):
    version: str
    seen_at: float


class Installations:
    """The Leases of all installations that have a marked ClusterRoleBinding.

    Clocks of different nodes are never compared: another installation is active as long as its Lease is held
    and changes.

    Args:
        cluster: client of the API server.
        namespace, name: namespace and name of the own Lease.
        mark: label and annotations of the ClusterRoleBindings.
        namespaces: namespaces that this installation watches; empty: all.
        patience_seconds: seconds after its last renewal during which another installation counts as active.
        clock: monotonic seconds.

    Attributes:
        other: Leases, as `namespace/name` and separated by commas, that this installation waits for or gives
            way to; empty: none.
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
        self._renewals: dict[LeaseName, _Renewal] = {}
        self._is_refused = False
        self.other = ""

    async def wait_until_alone(self) -> None:
        """Return once no other installation is active in the same namespaces."""
        while True:
            if not await self._finds_other(is_active=False):
                return
            await asyncio.sleep(self._patience_seconds / 4)

    async def is_preceded(self) -> bool:
        """Whether another installation is active that acquired its Lease earlier than this active one."""
        return await self._finds_other(is_active=True)

    async def wait_until_preceded(self) -> None:
        """Return when this active installation has to give way to another one.

        A term begins with `is_preceded`, so the first check here comes RECHECK_SECONDS later.
        """
        while True:
            await asyncio.sleep(RECHECK_SECONDS)
            if await self._finds_other(is_active=True):
                return

    async def _finds_other(self, *, is_active: bool) -> bool:
        try:
            others = await self._others(is_active=is_active)
        except ApiError as error:
            self._log_failure(error)
            return False
        self._is_refused = False
        other = ", ".join(map("/".join, others))
        if other and other != self.other:
            logger.error(
                "another installation of this operator is active in the same namespaces (lease %s)."
                " This one stays inactive until that one is gone: uninstall one of them, or set"
                " watchNamespaces that do not overlap",
                other,
            )
        elif self.other and not other:
            logger.info("the other installation (lease %s) is not active any more", self.other)
        self.other = other
        return bool(other)

    def _log_failure(self, error: ApiError) -> None:
        if isinstance(error, Rejected) and self._is_refused:
            return
        self._is_refused = isinstance(error, Rejected)
        logger.warning("other installations of this operator cannot be detected: %s", error)

    async def _others(self, *, is_active: bool) -> list[LeaseName]:
        """Leases of other active installations; if this one is active, only of those that were earlier."""
        live: dict[LeaseName, str] = {}
        for key in await self._overlapping():
            lease = await self._cluster.get(LEASE, *key)
            if lease is not None and self._is_live(key, lease):
                live[key] = _acquired(lease)
        if live and is_active:
            lease = await self._cluster.get(LEASE, *self._own)
            own = "" if lease is None else _acquired(lease)
            live = {key: acquired for key, acquired in live.items() if (acquired, key) < (own, self._own)}
        return sorted(live)

    async def _overlapping(self) -> set[LeaseName]:
        """Leases of the other installations that watch a namespace of this one, active or not."""
        found = set()
        async for bindings, _ in self._cluster.pages(CLUSTER_ROLE_BINDING, "", self._mark.label):
            for binding in bindings:
                installation = self._mark.read(binding)
                if installation is not None and self._overlaps(installation[1]):
                    found.add(installation[0])
        return found - {self._own}

    def _is_live(self, key: LeaseName, lease: Manifest) -> bool:
        version = lease["metadata"]["resourceVersion"]
        last = self._renewals.get(key)
        is_renewed = last is None or last.version != version
        if lease["spec"].get("holderIdentity") and is_renewed:
            last = self._renewals[key] = _Renewal(version, self._clock())
        # A released Lease still counts for a while: in a rolling update the next process acquires it at once.
        return last is not None and self._clock() - last.seen_at < self._patience_seconds

    def _overlaps(self, watched: frozenset[str]) -> bool:
        return EVERYWHERE in watched | self._watched or bool(watched & self._watched)


def _acquired(lease: Manifest) -> str:
    """Time of the acquisition, as a `MicroTime`. Earlier times sort before later ones."""
    return str(lease["spec"].get("acquireTime") or "")
