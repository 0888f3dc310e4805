# SPDX-License-Identifier: Apache-2.0
"""Responses of the report endpoint without an API server; a real one tests the rest."""

import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import httpx
import pytest
from kubernetes.aio.client import Configuration

from finetune_operator.engine.client import KubernetesClient
from finetune_operator.engine.errors import Unavailable
from finetune_operator.engine.http_server import make_certificate
from finetune_operator.engine.resources import ResourceTypes
from finetune_operator.engine.token_reviews import REVIEW_BURST, SOURCE_REVIEW_BURST, TooManyReviews
from finetune_operator.metrics.process_metrics import OperatorMetrics
from finetune_operator.report.authorization import Authorizer
from finetune_operator.report.progress_cache import ProgressCache
from finetune_operator.report.server import ReportServer
from finetune_operator.runtime.caches import Caches
from finetune_trainer.contract.environment import REPORT_PATH
from tools.cluster.layout import free_port


class Endpoint:
    """A server whose API server is not reachable."""

    def __init__(self) -> None:
        self.active = True
        unreachable = Configuration()
        unreachable.host = "https://127.0.0.1:1"
        self.cluster = KubernetesClient(unreachable, ResourceTypes(), "test")
        self.metrics = OperatorMetrics()
        board = ProgressCache(lambda _key, _delay: None)
        self.server = ReportServer(
            Authorizer(self.cluster, Caches().by_kind), board, lambda: self.active, self.metrics.reported
        )
        self.certificate = make_certificate("localhost", "x", datetime.now(UTC))
        self.port = free_port()
        context = ssl.create_default_context(cadata=self.certificate.ca)
        self.client = httpx.AsyncClient(verify=context, trust_env=False, timeout=30)

    async def post(self, **headers: str) -> httpx.Response:
        return await self.client.post(
            f"https://127.0.0.1:{self.port}{REPORT_PATH}",
            headers=headers,
            content="{}",
            extensions={"sni_hostname": "localhost.x.svc"},
        )


@pytest.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    made = Endpoint()
    await made.server.start(made.port, made.certificate.context())
    yield made
    await made.client.aclose()
    await made.server.stop()
    await made.cluster.close()


async def test_a_process_that_is_not_active_says_so(endpoint: Endpoint) -> None:
    endpoint.active = False
    answer = await endpoint.post(Authorization="Bearer token")
    assert answer.status_code == 503
    assert "Retry-After" in answer.headers


async def test_a_token_is_asked_for(endpoint: Endpoint) -> None:
    for headers in ({}, {"Authorization": "Basic abc"}, {"Authorization": "Bearer"}):
        assert (await endpoint.post(**headers)).status_code == 401


async def test_answers_are_counted_by_their_status(endpoint: Endpoint) -> None:
    await endpoint.post()
    await endpoint.post()
    endpoint.active = False
    await endpoint.post()
    for code, number in (("401", 2), ("503", 1)):
        value = endpoint.metrics.registry.get_sample_value("finetune_report_requests_total", {"code": code})
        assert value == number


async def test_a_token_that_cannot_be_checked_now_may_come_again(endpoint: Endpoint) -> None:
    answer = await endpoint.post(Authorization="Bearer token")
    assert answer.status_code == 503
    assert "API server" in answer.json()["error"]


async def reviewed(authorizer: Authorizer, token: str, source: str) -> bool:
    """Whether the server requested a review of the token from the unreachable API server."""
    try:
        with pytest.raises(Unavailable):
            await authorizer.caller(token, source)
    except TooManyReviews:
        return False
    return True


async def test_a_flood_of_unknown_tokens_is_not_passed_on(endpoint: Endpoint) -> None:
    authorizer = Authorizer(endpoint.cluster, Caches().by_kind, clock=lambda: 0.0)
    for number in range(REVIEW_BURST):
        assert await reviewed(authorizer, f"token {number}", f"10.0.0.{number}")
    assert not await reviewed(authorizer, "one more", "10.0.1.1")


async def test_a_pod_with_random_tokens_does_not_keep_others_from_reporting(endpoint: Endpoint) -> None:
    authorizer = Authorizer(endpoint.cluster, Caches().by_kind, clock=lambda: 0.0)
    asked = [await reviewed(authorizer, f"random {number}", "10.0.0.1") for number in range(500)]
    assert asked.count(True) == SOURCE_REVIEW_BURST
    assert await reviewed(authorizer, "good token", "10.0.0.2")
