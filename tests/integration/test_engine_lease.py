# SPDX-License-Identifier: Apache-2.0
"""Leader election by the Lease on a real API server."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from kubernetes.aio.client import Configuration

from finetune_operator.engine.client import KubernetesClient, load_configuration
from finetune_operator.engine.lease import Lease, LeaseThread, LeaseTimes
from finetune_operator.engine.resources import ResourceTypes
from tests.integration.api import Api
from tools.cluster import ControlPlane

TIMES = LeaseTimes(duration_seconds=2.0, deadline_seconds=1.2, retry_seconds=0.2)


@pytest.fixture
async def cluster(control_plane: ControlPlane) -> AsyncIterator[KubernetesClient]:
    configuration = await load_configuration(control_plane.kubeconfig)
    opened = KubernetesClient(configuration, ResourceTypes(), "lease-test")
    yield opened
    await opened.close()


def lease(cluster: KubernetesClient, namespace: str, identity: str) -> Lease:
    return Lease(cluster, namespace, "active", identity=identity, times=TIMES)


async def acquired(candidate: Lease, seconds: float) -> bool:
    try:
        await asyncio.wait_for(candidate.acquire(), seconds)
    except TimeoutError:
        return False
    return True


async def test_the_second_waits_while_the_first_renews(cluster: KubernetesClient, namespace: str) -> None:
    first, second = lease(cluster, namespace, "first"), lease(cluster, namespace, "second")
    await first.acquire()
    keeping = asyncio.create_task(first.keep())
    assert not await acquired(second, 2 * TIMES.duration_seconds)
    assert first.held
    assert not second.held
    keeping.cancel()


async def test_a_released_lease_is_taken_at_once(cluster: KubernetesClient, namespace: str) -> None:
    first, second = lease(cluster, namespace, "first"), lease(cluster, namespace, "second")
    await first.acquire()
    waiting = asyncio.create_task(second.acquire())
    await asyncio.sleep(TIMES.retry_seconds)
    assert not waiting.done()
    await first.release()
    await asyncio.wait_for(waiting, TIMES.duration_seconds)
    assert second.held
    assert not first.held


async def test_a_lease_that_nobody_renews_runs_out(
    cluster: KubernetesClient, namespace: str, api: Api
) -> None:
    first, second = lease(cluster, namespace, "first"), lease(cluster, namespace, "second")
    await first.acquire()
    assert not await acquired(second, TIMES.duration_seconds / 2)
    assert await acquired(second, 3 * TIMES.duration_seconds)
    found = api.get("Lease", namespace, "active")
    assert found is not None
    assert found["spec"]["holderIdentity"] == "second"
    assert found["spec"]["leaseTransitions"] == 1


async def test_the_old_holder_notices_that_it_was_replaced(cluster: KubernetesClient, namespace: str) -> None:
    first, second = lease(cluster, namespace, "first"), lease(cluster, namespace, "second")
    await first.acquire()
    assert await acquired(second, 3 * TIMES.duration_seconds)
    await asyncio.wait_for(first.keep(), TIMES.duration_seconds)
    assert not first.held


async def test_a_holder_that_cannot_renew_gives_up_before_another_may_take_over(
    cluster: KubernetesClient, namespace: str
) -> None:
    first = lease(cluster, namespace, "first")
    await first.acquire()
    await cluster.close()
    unreachable = Configuration()
    unreachable.host = "https://127.0.0.1:1"
    first._cluster = KubernetesClient(unreachable, ResourceTypes(), "lease-test")
    # Another process may take over after `duration_seconds`; this holder must have given up before.
    await asyncio.wait_for(first.keep(), TIMES.duration_seconds)
    assert not first.held


async def test_a_restarted_process_of_the_same_name_goes_on_at_once(
    cluster: KubernetesClient, namespace: str
) -> None:
    await lease(cluster, namespace, "pod-0").acquire()
    assert await acquired(lease(cluster, namespace, "pod-0"), TIMES.duration_seconds / 2)


async def test_a_busy_event_loop_does_not_lose_the_lease(control_plane: ControlPlane, namespace: str) -> None:
    configuration = await load_configuration(control_plane.kubeconfig)

    def thread(identity: str) -> LeaseThread:
        return LeaseThread(
            lambda: KubernetesClient(configuration, ResourceTypes(), "lease-test"),
            lambda opened, stalled_seconds: Lease(
                opened, namespace, "active", identity=identity, times=TIMES, stalled_seconds=stalled_seconds
            ),
        )

    first, second = thread("first"), thread("second")
    await first.acquire()
    keeping = asyncio.create_task(first.keep())
    waiting = asyncio.create_task(second.acquire())
    await asyncio.sleep(TIMES.retry_seconds)
    # This blocks the event loop.
    time.sleep(2 * TIMES.duration_seconds)  # noqa: ASYNC251 - the very thing that is tried
    first.check()
    assert not second.held
    waiting.cancel()
    keeping.cancel()
    await first.release()
    for each in (first, second):
        await each.close()
