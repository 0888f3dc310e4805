"""What the process says of a report endpoint that cannot be published; that it can is tested in a cluster."""

from collections.abc import AsyncIterator

import pytest
from kubernetes.aio.client import Configuration

from finetune_operator.caches import Caches
from finetune_operator.engine.applying import Stamp
from finetune_operator.engine.cluster import Cluster
from finetune_operator.engine.resources import ResourceTypes
from finetune_operator.report.authorizer import Authorizer
from finetune_operator.report.board import ProgressBoard
from finetune_operator.report.publishing import ReportEndpoint
from finetune_operator.report.server import ReportServer
from hack.cluster.ports import free_port


@pytest.fixture
async def unreachable() -> AsyncIterator[Cluster]:
    configuration = Configuration()
    configuration.host = "https://127.0.0.1:1"
    cluster = Cluster(configuration, ResourceTypes(), "test")
    yield cluster
    await cluster.close()


def endpoint(cluster: Cluster, address: str) -> ReportEndpoint:
    board = ProgressBoard(lambda _key, _delay: None)
    server = ReportServer(Authorizer(cluster, Caches()), board, lambda: True, lambda _code: None)
    return ReportEndpoint(
        cluster,
        server,
        Stamp("test/applied"),
        service="report",
        namespace="system",
        address=address,
        port=free_port(),
    )


async def test_an_endpoint_that_cannot_be_published_is_down(unreachable: Cluster) -> None:
    made = endpoint(unreachable, "10.0.0.1")
    assert made.up is False
    await made.publish_soon()
    assert made.up is False
    assert made.target is None


async def test_where_there_is_to_be_none_it_is_neither_up_nor_down(unreachable: Cluster) -> None:
    made = endpoint(unreachable, "")
    await made.publish_soon()
    assert made.up is None
