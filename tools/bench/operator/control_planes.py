# SPDX-License-Identifier: Apache-2.0
"""A control plane for one measurement, and its clients; each client is its own user in the audit log.

`measure_alone` runs a measurement that has its own control plane and its own table in docs/benchmarks.md.
"""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Final, TypeVar

import typer
from rich.console import Console

from finetune_operator.engine.client import KubernetesClient, load_configuration
from finetune_operator.engine.resources import ResourceType, ResourceTypes
from finetune_operator.plan import Manifest
from finetune_operator.runtime.caches import KIND_TYPES
from tools.bench.page import PAGE, BenchError, Sheet, put
from tools.bootstrap.uv import ROOT
from tools.cluster import ControlPlane
from tools.cluster.commands import ClusterError
from tools.cluster.toolchain import KUBERNETES

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


LOGS: Final = ROOT / "build" / "bench"
Page = Annotated[bool, typer.Option(help="Replace the table in docs/benchmarks.md.")]
Logs = Annotated[Path, typer.Option(help="Folder for the operator's log.")]


def measure_alone(
    name: str, run: Callable[[ControlPlane, Callable[[str], None]], Sheet], begin: str | None, logs: Path
) -> None:
    """Measure on a new control plane, print the table, and write it to the page.

    Args:
        name: name of the control plane.
        run: measures on the control plane and returns the table; its second argument shows the progress.
        begin: marker line of the page before the table; None to print the table only.
        logs: folder for logs; created if missing.

    Raises:
        typer.Exit: the measurement failed; the reason is printed.
    """
    console = Console(highlight=False)
    logs.mkdir(parents=True, exist_ok=True)
    try:
        with (
            console.status("Starting a control plane", refresh_per_second=1) as shown,
            control_plane(name) as plane,
        ):
            plane.kubectl.define(ROOT / "crds")
            table = run(plane, shown.update)
    except (BenchError, ClusterError) as error:
        print(f"bench: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    console.print(table.to_terminal())
    if begin is not None:
        put(PAGE, begin, [table], f"Kubernetes {KUBERNETES.version}")
