"""What the kubelet is told."""

from collections.abc import AsyncIterator

import httpx
import pytest

from finetune_operator.engine.watches import Watches
from finetune_operator.metrics.counters import Metrics
from finetune_operator.probes import OLDEST_WATCH, ProbeServer
from tests.ports import free_port


class Probed:
    """A probe server whose watches have a clock of the test's."""

    def __init__(self) -> None:
        self.now = 0.0
        self.watches = Watches(lambda: self.now)
        self.server = ProbeServer(self.watches, Metrics().registry)
        self.port = free_port()

    async def get(self, path: str) -> httpx.Response:
        async with httpx.AsyncClient(trust_env=False) as client:
            return await client.get(f"http://127.0.0.1:{self.port}{path}")


@pytest.fixture
async def probed() -> AsyncIterator[Probed]:
    made = Probed()
    await made.server.start(made.port)
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
    probed.now = OLDEST_WATCH
    assert (await probed.get("/healthz")).status_code == 200
    probed.watches.beat("pods")
    probed.now = OLDEST_WATCH + 1
    answer = await probed.get("/healthz")
    assert (answer.status_code, answer.json()["frozen"]) == (503, ["jobs"])


async def test_metrics_are_prometheus_text(probed: Probed) -> None:
    answer = await probed.get("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert "# TYPE finetune_api_requests_total counter" in answer.text
