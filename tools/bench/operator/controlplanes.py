"""A control plane for one measurement, and clients of it, each a user of its own in the audit log."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import Final, TypeVar

from finetune_operator.engine.client import KubernetesClient
from finetune_operator.engine.resources import ResourceType, ResourceTypes
from finetune_operator.engine.transport import load_configuration
from finetune_operator.plan import Manifest
from finetune_operator.runtime.caches import KIND_TYPES
from tools.cluster import ControlPlane

T = TypeVar("T")

MAX_CONCURRENT_REQUESTS: Final = 8
"""Requests that are made at the same time."""


@contextlib.contextmanager
def control_plane(name: str) -> Iterator[ControlPlane]:
    """Empty at first, and gone with all that it wrote at the end. Raises ClusterError."""
    plane = ControlPlane(f"{name}-{os.getpid()}")
    try:
        with plane:
            yield plane
    finally:
        plane.purge()


@contextlib.asynccontextmanager
async def client(plane: ControlPlane, name: str, *types: ResourceType) -> AsyncIterator[KubernetesClient]:
    """A client with all rights, for what Kubernetes has, our kinds, and other `types`."""
    configuration = await load_configuration(plane.client(name))
    cluster = KubernetesClient(configuration, ResourceTypes([*KIND_TYPES.values(), *types]), name)
    try:
        yield cluster
    finally:
        await cluster.close()


async def create(cluster: KubernetesClient, manifests: Iterable[Manifest]) -> None:
    """Create them all, in their order, some at a time."""
    await for_each_concurrently(cluster.create, manifests)


async def for_each_concurrently(work: Callable[[T], Awaitable[object]], subjects: Iterable[T]) -> None:
    """Do the work for them all, in their order, some at a time."""
    waiting = iter(subjects)

    async def some() -> None:
        for subject in waiting:
            await work(subject)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(MAX_CONCURRENT_REQUESTS):
            tasks.create_task(some())
