# SPDX-License-Identifier: Apache-2.0
"""A control plane for one measurement, and its clients; each client is its own user in the audit log."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import Final, TypeVar

from finetune_operator.engine.client import KubernetesClient, load_configuration
from finetune_operator.engine.resources import ResourceType, ResourceTypes
from finetune_operator.plan import Manifest
from finetune_operator.runtime.caches import KIND_TYPES
from tools.cluster import ControlPlane

T = TypeVar("T")

MAX_CONCURRENT_REQUESTS: Final = 8
"""Maximum number of requests in flight."""


@contextlib.contextmanager
def control_plane(name: str) -> Iterator[ControlPlane]:
    """A new, empty control plane. The end of the block removes it and its files.

    Raises:
        ClusterError: it did not start.
    """
    plane = ControlPlane(f"{name}-{os.getpid()}")
    try:
        with plane:
            yield plane
    finally:
        plane.purge()


@contextlib.asynccontextmanager
async def client(plane: ControlPlane, name: str, *types: ResourceType) -> AsyncIterator[KubernetesClient]:
    """A client with all rights, for the types of Kubernetes, our kinds and `types`."""
    configuration = await load_configuration(plane.client(name))
    cluster = KubernetesClient(configuration, ResourceTypes([*KIND_TYPES.values(), *types]), name)
    try:
        yield cluster
    finally:
        await cluster.close()


async def create(cluster: KubernetesClient, manifests: Iterable[Manifest]) -> None:
    """Create all objects in order, MAX_CONCURRENT_REQUESTS at a time."""
    await for_each_concurrently(cluster.create, manifests)


async def for_each_concurrently(work: Callable[[T], Awaitable[object]], subjects: Iterable[T]) -> None:
    """Call `work` for all subjects in order, MAX_CONCURRENT_REQUESTS at a time."""
    remaining = iter(subjects)

    async def worker() -> None:
        for subject in remaining:
            await work(subject)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(MAX_CONCURRENT_REQUESTS):
            tasks.create_task(worker())
