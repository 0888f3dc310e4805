# SPDX-License-Identifier: Apache-2.0
"""Which of two installations that watch the same namespaces gives way."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, cast

import pytest

from finetune_operator.engine.client import KubernetesClient
from finetune_operator.engine.errors import Rejected
from finetune_operator.engine.installations import RECHECK_SECONDS, Installations, Mark
from finetune_operator.plan import Manifest
from tests.unit.operator.skippingclock import run

MARK = Mark("installation", "watched")
PATIENCE = 15.0
OWN = "systems/second"


class Leases:
    """The Leases of a cluster, and a clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.known: dict[str, Manifest] = {}
        self.refusal: Rejected | None = None
        self.lists = 0
        self._versions = 0

    def renew(
        self, name: str, *watched: str, holder: str = "pod", acquired: str = "2030-01-01T00:00:00Z"
    ) -> None:
        """Renew the Lease; without a holder, release it."""
        self._versions += 1
        namespace, _, short = name.partition("/")
        marks = MARK.metadata(watched)
        metadata = {"namespace": namespace, "name": short, "resourceVersion": str(self._versions), **marks}
        self.known[name] = {"metadata": metadata, "spec": {"holderIdentity": holder, "acquireTime": acquired}}

    async def pages(self, *_: Any) -> AsyncGenerator[tuple[list[Manifest], str]]:
        self.lists += 1
        if self.refusal is not None:
            raise self.refusal
        yield list(self.known.values()), str(self._versions)

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
    leases.refusal = Rejected(403, "Forbidden", "cannot list resource leases")
    installation = leases.installation()
    assert not await waits(installation)
    assert not await waits(installation)
    assert [message for message in caplog.messages if "cannot list" in message] == [
        "other installations of this operator cannot be detected: cannot list resource leases"
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
