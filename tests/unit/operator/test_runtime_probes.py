# SPDX-License-Identifier: Apache-2.0
"""Responses to the kubelet's probes."""

from collections.abc import AsyncIterator, Callable

import httpx
import pytest

from finetune_operator.engine.errors import Rejected
from finetune_operator.engine.watches import Watches
from finetune_operator.metrics.process_metrics import OperatorMetrics
from finetune_operator.runtime.http_servers import MAX_WATCH_SILENCE_SECONDS, ProbeServer
from tools.cluster.layout import free_port

FORBIDDEN = Rejected(403, "Forbidden", "pods is forbidden")


class Probed:
    """A probe server whose watches use the test's clock."""

    def __init__(self, outdated: Callable[[], tuple[str, ...] | None] = lambda: ()) -> None:
        self.now = 0.0
        self.watches = Watches(lambda: self.now)
        self.server = ProbeServer(self.watches, OperatorMetrics().registry, outdated)
        self.port = free_port()

    async def get(self, path: str) -> httpx.Response:
        async with httpx.AsyncClient(trust_env=False) as client:
            return await client.get(f"http://127.0.0.1:{self.port}{path}")


@pytest.fixture
async def probed() -> AsyncIterator[Probed]:
    made = Probed()
    await made.server.start(made.port, metrics=True)
    yield made
    await made.server.stop()


async def test_a_process_is_ready_when_every_first_list_is_complete(probed: Probed) -> None:
    probed.watches.expect("pods")
    probed.watches.expect("jobs")
    probed.watches.synced("pods")
    answer = await probed.get("/readyz")
    assert (answer.status_code, answer.json()["waitingFor"]) == (503, ["jobs"])
    probed.watches.synced("jobs")
    assert (await probed.get("/readyz")).status_code == 200


async def test_one_silent_watch_among_live_ones_ends_the_process(probed: Probed) -> None:
    for resource in ("pods", "jobs"):
        probed.watches.expect(resource)
        probed.watches.synced(resource)
    probed.now = MAX_WATCH_SILENCE_SECONDS
    assert (await probed.get("/healthz")).status_code == 200
    probed.watches.beat("pods")
    probed.now = MAX_WATCH_SILENCE_SECONDS + 1
    answer = await probed.get("/healthz")
    assert (answer.status_code, answer.json()["frozen"]) == (503, ["jobs"])


async def test_a_type_that_was_never_listed_ends_no_process(probed: Probed) -> None:
    probed.watches.expect("pods/team-a")
    probed.now = MAX_WATCH_SILENCE_SECONDS + 1
    assert (await probed.get("/healthz")).status_code == 200
    answer = await probed.get("/readyz")
    assert (answer.status_code, answer.json()["waitingFor"]) == (503, ["pods/team-a"])


async def test_a_refusal_is_a_sign_of_life_and_no_news(probed: Probed) -> None:
    probed.watches.expect("pods")
    probed.watches.synced("pods")
    probed.now = MAX_WATCH_SILENCE_SECONDS
    probed.watches.refused("pods", FORBIDDEN)
    probed.now = MAX_WATCH_SILENCE_SECONDS + 1
    answer = await probed.get("/healthz")
    assert (answer.status_code, answer.json()["watchAgeSeconds"]) == (
        200,
        {"pods": MAX_WATCH_SILENCE_SECONDS + 1},
    )
    probed.now = 2 * MAX_WATCH_SILENCE_SECONDS + 1
    assert (await probed.get("/healthz")).json()["frozen"] == ["pods"]


async def test_a_namespace_that_may_not_be_listed_is_named_and_the_process_ready(probed: Probed) -> None:
    for resource in ("pods/team-a", "pods/team-b"):
        probed.watches.expect(resource)
    probed.watches.synced("pods/team-a")
    probed.watches.refused("pods/team-b", FORBIDDEN)
    answer = await probed.get("/readyz")
    assert (answer.status_code, answer.json()) == (200, {"waitingFor": [], "leftOut": ["team-b"]})


async def test_metrics_are_prometheus_text(probed: Probed) -> None:
    answer = await probed.get("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert "# TYPE finetune_api_requests_total counter" in answer.text


@pytest.mark.parametrize(("lacking", "code"), [((), 200), (None, 503), (("datasets lacks x",), 503)])
async def test_outdated_definitions_hold_up_the_readiness(lacking: tuple[str, ...] | None, code: int) -> None:
    probed = Probed(lambda: lacking)
    await probed.server.start(probed.port, metrics=True)
    try:
        answer = await probed.get("/readyz")
    finally:
        await probed.server.stop()
    assert answer.status_code == code
    assert tuple(answer.json().get("outdatedDefinitions", ())) == (lacking or ())
