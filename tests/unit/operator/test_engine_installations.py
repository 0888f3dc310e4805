# SPDX-License-Identifier: Apache-2.0
"""Which of two installations that watch the same namespaces gives way."""

import asyncio
from collections.abc import AsyncGenerator
from typing import cast

import pytest

from finetune_operator.engine.client import KubernetesClient
from finetune_operator.engine.errors import Rejected
from finetune_operator.engine.lease import (
    ALL_NAMESPACES,
    RECHECK_SECONDS,
    InstallationMark,
    Installations,
    LeaseThread,
)
from finetune_operator.engine.queue import ReconcileWorkers, WorkQueue
from finetune_operator.engine.resources import CLUSTER_ROLE_BINDING, LEASE, ResourceType
from finetune_operator.plan import Key, Manifest
from finetune_operator.runtime.leader_term import Leadership
from tests.unit.operator.skippingclock import run

MARK = InstallationMark("installation", "lease", "watched")
PATIENCE = 15.0
OWN = "systems/second"


class Leases:
    """The Leases and marked ClusterRoleBindings of a cluster, and a clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.known: dict[str, Manifest] = {}
        self.bindings: dict[str, Manifest] = {}
        self.read: list[str] = []
        self.refusal: Rejected | None = None
        self.lists = 0
        self._versions = 0

    def renew(
        self, name: str, *watched: str, holder: str = "pod", acquired: str = "2030-01-01T00:00:00Z"
    ) -> None:
        """Renew the Lease of an installation of the chart; without a holder, release it."""
        self.write_lease(name, holder, acquired)
        self.bindings[name] = binding(name, *watched)

    def write_lease(self, name: str, holder: str, acquired: str) -> None:
        """Write a Lease, as each editor of its namespace may."""
        self._versions += 1
        metadata = {"resourceVersion": str(self._versions)}
        self.known[name] = {"metadata": metadata, "spec": {"holderIdentity": holder, "acquireTime": acquired}}

    async def pages(
        self, type_: ResourceType, namespace: str, selector: str
    ) -> AsyncGenerator[tuple[list[Manifest], str]]:
        assert (type_, namespace, selector) == (CLUSTER_ROLE_BINDING, "", MARK.label)
        self.lists += 1
        if self.refusal is not None:
            raise self.refusal
        yield list(self.bindings.values()), str(self._versions)

    async def get(self, type_: ResourceType, namespace: str, name: str) -> Manifest | None:
        assert type_ == LEASE
        self.read.append(f"{namespace}/{name}")
        return self.known.get(f"{namespace}/{name}")

    def installation(self, *watched: str) -> Installations:
        namespace, _, name = OWN.partition("/")
        return Installations(
            cast("KubernetesClient", self),
            namespace,
            name,
            mark=MARK,
            namespaces=watched,
            patience_seconds=PATIENCE,
            clock=lambda: self.now,
        )


def binding(lease: str, *watched: str) -> Manifest:
    """The ClusterRoleBinding of an installation, as the chart writes it."""
    annotations = {MARK.lease: lease, MARK.namespaces: ",".join(watched) or ALL_NAMESPACES}
    return {"metadata": {"labels": {MARK.label: "true"}, "annotations": annotations}}


class Held:
    """The own Lease, which no one else takes."""

    def __init__(self) -> None:
        self.terms = 0

    async def acquire(self) -> None:
        self.terms += 1

    async def keep(self) -> None:
        await asyncio.Event().wait()

    async def release(self) -> None:
        """Nobody waits for it."""


class Working:
    """Workers that work until they are stopped."""

    async def run(self) -> None:
        await asyncio.Event().wait()


async def prepare() -> None:
    """Nothing to prepare."""


async def upkeep() -> None:
    await asyncio.Event().wait()


async def waits(installation: Installations) -> bool:
    return await installation._finds_other(is_active=False)


@pytest.mark.parametrize(
    ("own", "others", "overlap"),
    [
        ((), (), True),
        (("a",), (), True),
        ((), ("a",), True),
        (("a", "b"), ("b", "c"), True),
        (("a", "b"), ("c",), False),
    ],
)
async def test_it_waits_for_one_that_works_on_the_same_namespaces(
    own: tuple[str, ...], others: tuple[str, ...], overlap: bool
) -> None:
    leases = Leases()
    leases.renew("elsewhere/first", *others)
    installation = leases.installation(*own)
    assert await waits(installation) is overlap
    assert installation.other == ("elsewhere/first" if overlap else "")


async def test_the_own_lease_is_no_other_installation() -> None:
    leases = Leases()
    leases.renew(OWN)
    assert not await waits(leases.installation())


async def test_a_lease_that_no_administrator_marked_is_not_even_read() -> None:
    leases = Leases()
    leases.renew(OWN)
    leases.write_lease("team-b/finetune-operator", "anyone", "2000-01-01T00:00:00Z")
    installation = leases.installation()
    assert not await waits(installation)
    assert not await installation.is_preceded()
    assert installation.other == ""
    assert leases.read == []


def test_a_lease_that_an_editor_renews_neither_ends_a_term_nor_keeps_one_from_beginning() -> None:
    async def terms() -> None:
        leases, held, stopping = Leases(), Held(), asyncio.Event()
        leases.renew(OWN)
        queue: WorkQueue[Key] = WorkQueue(lambda key: key.namespace, lambda _: ())
        leadership = Leadership(
            cast("LeaseThread", held),
            leases.installation(),
            queue,
            cast("ReconcileWorkers", Working()),
            prepare=prepare,
            upkeep=upkeep,
        )
        leases.write_lease("team-b/x", "anyone", "2000-01-01T00:00:00Z")
        running = asyncio.create_task(leadership.run(stopping))
        for _ in range(10):
            await asyncio.sleep(RECHECK_SECONDS / 2)
            leases.write_lease("team-b/x", "anyone", "2000-01-01T00:00:00Z")
        assert held.terms == 1
        assert leases.lists > 5
        stopping.set()
        await running

    run(terms())


async def test_the_namespaces_of_an_installation_are_those_that_its_administrator_wrote() -> None:
    leases = Leases()
    leases.renew("team-b-system/finetune-operator", "team-b")
    lease = leases.known["team-b-system/finetune-operator"]
    # Whoever may edit the namespace of a team's own installation may also write this.
    lease["metadata"] |= {"labels": {MARK.label: "true"}, "annotations": {MARK.namespaces: ALL_NAMESPACES}}
    assert not await waits(leases.installation("team-a"))


@pytest.mark.parametrize("annotations", [None, {}, {MARK.lease: "no-namespace"}, {MARK.lease: "no-name/"}])
async def test_a_mark_that_names_no_lease_is_left_out(annotations: dict[str, str] | None) -> None:
    leases = Leases()
    leases.bindings["x"] = {"metadata": {"labels": {MARK.label: "true"}, "annotations": annotations}}
    assert not await waits(leases.installation())


async def test_one_that_renews_no_more_is_waited_for_as_long_as_its_lease_lasts() -> None:
    leases = Leases()
    leases.renew("elsewhere/first")
    installation = leases.installation()
    for _ in range(3):
        leases.now += PATIENCE - 1
        leases.renew("elsewhere/first")
        assert await waits(installation)
    leases.now += PATIENCE - 1
    assert await waits(installation)
    leases.now += 1
    assert not await waits(installation)
    assert installation.other == ""


async def test_one_that_was_uninstalled_before_is_not_waited_for() -> None:
    leases = Leases()
    leases.renew("elsewhere/first", holder="")
    assert not await waits(leases.installation())


async def test_a_rolling_update_of_the_first_does_not_let_the_second_in() -> None:
    leases = Leases()
    leases.renew("elsewhere/first")
    installation = leases.installation()
    assert await waits(installation)
    leases.now += 10
    leases.renew("elsewhere/first")
    assert await waits(installation)
    leases.renew("elsewhere/first", holder="")
    leases.now += 5
    assert await waits(installation)
    leases.renew("elsewhere/first", holder="its next pod")
    leases.now += 12
    assert await waits(installation)


@pytest.mark.parametrize(
    ("own", "other", "gives_way"),
    [
        ("2030-01-01T00:00:02Z", "2030-01-01T00:00:01Z", True),
        ("2030-01-01T00:00:01Z", "2030-01-01T00:00:02Z", False),
    ],
)
async def test_of_two_that_began_at_once_the_later_one_gives_way(
    own: str, other: str, gives_way: bool
) -> None:
    leases = Leases()
    leases.renew(OWN, acquired=own)
    leases.renew("elsewhere/first", acquired=other)
    assert await leases.installation().is_preceded() is gives_way


async def test_of_two_that_began_in_the_same_moment_one_stays() -> None:
    leases = Leases()
    leases.renew(OWN)
    leases.renew("elsewhere/first")
    leases.renew("zone/last")
    assert await leases.installation().is_preceded()
    del leases.known["elsewhere/first"]
    assert not await leases.installation().is_preceded()


async def test_without_the_right_to_list_it_works_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    leases = Leases()
    leases.renew("elsewhere/first")
    leases.refusal = Rejected(403, "Forbidden", "cannot list resource clusterrolebindings")
    installation = leases.installation()
    assert not await waits(installation)
    assert not await waits(installation)
    assert [message for message in caplog.messages if "cannot list" in message] == [
        "other installations of this operator cannot be detected: cannot list resource clusterrolebindings"
    ]


def test_a_term_begins_with_one_list_and_gives_way_at_the_next() -> None:
    async def term() -> None:
        leases = Leases()
        leases.renew(OWN, acquired="2030-01-01T00:00:02Z")
        installation = leases.installation()
        assert not await installation.is_preceded()
        given_way = asyncio.create_task(installation.wait_until_preceded())
        await asyncio.sleep(RECHECK_SECONDS - 1)
        assert leases.lists == 1
        leases.renew("elsewhere/first", acquired="2030-01-01T00:00:01Z")
        await asyncio.sleep(2)
        assert leases.lists == 2
        assert given_way.done()

    run(term())
