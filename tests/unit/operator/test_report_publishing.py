# SPDX-License-Identifier: Apache-2.0
"""A report endpoint that cannot be published, or whose certificate is replaced; a real cluster tests the
rest."""

import ssl
from collections.abc import AsyncIterator
from typing import Any, cast

import httpx
import pytest
from kubernetes.aio.client import Configuration

from finetune_operator.engine.client import KubernetesClient
from finetune_operator.engine.executor import Stamp
from finetune_operator.engine.resources import SECRET, ResourceTypes
from finetune_operator.plan import Manifest
from finetune_operator.report.authorization import Authorizer
from finetune_operator.report.progress_cache import ProgressCache
from finetune_operator.report.server import ReportEndpoint, ReportServer
from finetune_operator.runtime.caches import Caches
from tools.cluster.layout import free_port


@pytest.fixture
async def unreachable() -> AsyncIterator[KubernetesClient]:
    configuration = Configuration()
    configuration.host = "https://127.0.0.1:1"
    cluster = KubernetesClient(configuration, ResourceTypes(), "test")
    yield cluster
    await cluster.close()


def endpoint(cluster: KubernetesClient, address: str) -> ReportEndpoint:
    board = ProgressCache(lambda _key, _delay: None)
    server = ReportServer(Authorizer(cluster, Caches().by_kind), board, lambda: True, lambda _code: None)
    return ReportEndpoint(
        cluster,
        server,
        Stamp("test/applied"),
        service="report",
        namespace="system",
        address=address,
        port=free_port(),
    )


async def test_an_endpoint_that_cannot_be_published_is_down(unreachable: KubernetesClient) -> None:
    made = endpoint(unreachable, "10.0.0.1")
    assert made.up is False
    await made.publish_soon()
    assert made.up is False
    assert made.target is None


async def test_where_there_is_to_be_none_it_is_neither_up_nor_down(unreachable: KubernetesClient) -> None:
    made = endpoint(unreachable, "")
    await made.publish_soon()
    assert made.up is None


class Objects:
    """A fake cluster that stores objects."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], Manifest] = {}

    async def get(self, type_: Any, _namespace: str, name: str) -> Manifest | None:
        return self.kept.get((type_.kind, name))

    async def create(self, manifest: Manifest) -> Manifest:
        self.kept[manifest["kind"], manifest["metadata"]["name"]] = manifest
        return manifest

    apply = create


async def answers(made: ReportEndpoint, port: int) -> int:
    """HTTP status of a report from a pod with the current address of the endpoint."""
    assert made.target is not None
    context = ssl.create_default_context(cadata=made.target.ca_pem)
    async with httpx.AsyncClient(verify=context, trust_env=False) as client:
        answer = await client.post(
            f"https://127.0.0.1:{port}/v1/reports", extensions={"sni_hostname": "report.system.svc"}
        )
    return answer.status_code


async def test_a_replaced_certificate_is_served_without_a_restart() -> None:
    cluster = Objects()
    board = ProgressCache(lambda _key, _delay: None)
    server = ReportServer(
        Authorizer(cast("KubernetesClient", cluster), Caches().by_kind),
        board,
        lambda: True,
        lambda _code: None,
    )
    port = free_port()
    made = ReportEndpoint(
        cast("KubernetesClient", cluster),
        server,
        Stamp("test/applied"),
        service="report",
        namespace="system",
        address="127.0.0.1",
        port=port,
    )
    try:
        await made.publish_soon()
        before = made.target
        assert await answers(made, port) == 401
        # An administrator deletes the Secret: the next publication creates a new one.
        del cluster.kept[SECRET.kind, "report-tls"]
        await made.publish_soon()
        assert made.target != before
        assert await answers(made, port) == 401
    finally:
        await server.stop()
