# SPDX-License-Identifier: Apache-2.0
"""Namespaces with complete first lists, and namespaces that are left out."""

import asyncio

import pytest

from finetune_operator.engine.errors import Rejected
from finetune_operator.engine.watches import Watches

FORBIDDEN = Rejected(403, "Forbidden", "pods is forbidden")
NOT_INSTALLED = Rejected(404, "NotFound", "the server could not find the requested resource")


def watches(*names: str) -> Watches:
    made = Watches(lambda: 0.0)
    for name in names:
        made.expect(name)
    return made


def two_namespaces() -> Watches:
    return watches("computeprofiles", "pods/team-a", "jobs/team-a", "pods/team-b", "jobs/team-b")


def complete(made: Watches, *names: str) -> Watches:
    for name in names:
        made.synced(name)
    return made


def test_a_namespace_is_complete_with_all_its_lists_and_those_of_the_cluster() -> None:
    made = complete(two_namespaces(), "pods/team-a", "jobs/team-a", "pods/team-b")
    assert not made.complete("team-a")
    made.synced("computeprofiles")
    assert made.complete("team-a")
    assert not made.complete("team-b")


def test_the_age_of_a_watch_is_that_of_the_namespace_or_of_the_whole_cluster() -> None:
    now = 5.0
    made = Watches(lambda: now)
    for name in ("pods/team-a", "pods/team-b", "jobs"):
        made.expect(name)
    now = 10.0
    made.beat("pods/team-b")
    now = 12.0
    ages = [made.age(*each) for each in (("pods", "team-a"), ("pods", "team-b"), ("jobs", "team-a"))]
    assert ages == [7, 2, 7]
    assert made.age("deployments", "team-a") == 0


def test_whoever_listens_is_told_of_each_namespace_once() -> None:
    made, told = two_namespaces(), list[str]()
    made.subscribe(told.append)
    complete(made, "pods/team-a", "jobs/team-a")
    assert told == []
    complete(made, "computeprofiles", "pods/team-b", "jobs/team-b", "jobs/team-b")
    assert told == ["", "team-a", "team-b"]


async def test_a_forbidden_namespace_is_not_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    made = complete(two_namespaces(), "computeprofiles", "pods/team-a", "jobs/team-a", "jobs/team-b")
    settled = asyncio.create_task(made.all_settled())
    await asyncio.sleep(0)
    assert made.waiting_for == ("pods/team-b",)
    for _ in range(3):
        made.refused("pods/team-b", FORBIDDEN)
    await settled
    assert made.left_out == ("team-b",)
    assert not made.complete("team-b")
    (said,) = caplog.messages
    assert said.startswith("the operator may not list pods/team-b, so it does nothing in namespace team-b: ")


def test_a_namespace_counts_as_soon_as_it_may_be_listed() -> None:
    made = complete(two_namespaces(), "computeprofiles", "pods/team-a", "jobs/team-a", "jobs/team-b")
    made.refused("pods/team-b", FORBIDDEN)
    made.synced("pods/team-b")
    assert made.complete("team-b")
    assert made.left_out == ()


def test_a_process_that_may_list_no_namespace_is_not_ready() -> None:
    made = complete(two_namespaces(), "computeprofiles", "jobs/team-a", "jobs/team-b")
    for name in ("pods/team-a", "pods/team-b"):
        made.refused(name, FORBIDDEN)
    assert made.waiting_for == ("pods/team-a", "pods/team-b")


@pytest.mark.parametrize("other", ["jobs", "jobs/team-a"])
def test_what_is_listed_for_the_whole_cluster_is_always_waited_for(other: str) -> None:
    made = complete(watches("pods", other), other)
    made.refused("pods", FORBIDDEN)
    assert made.waiting_for == ("pods",)
    assert not made.complete("team-a")


def test_types_that_are_not_installed_are_waited_for() -> None:
    made = complete(two_namespaces(), "computeprofiles", "pods/team-a", "jobs/team-a", "pods/team-b")
    made.refused("jobs/team-b", NOT_INSTALLED)
    assert made.waiting_for == ("jobs/team-b",)


def test_what_was_complete_stays_so_when_a_right_goes() -> None:
    made = complete(watches("pods/team-a"), "pods/team-a")
    made.refused("pods/team-a", FORBIDDEN)
    assert made.complete("team-a")
    assert made.left_out == ()
