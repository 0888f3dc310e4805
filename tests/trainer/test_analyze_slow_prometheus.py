# SPDX-License-Identifier: Apache-2.0
"""Gates on queries of the user, if the server is slow or is not a Prometheus."""

import socket
import threading
from pathlib import Path

import pytest
from typing_extensions import override

from finetune_trainer.analyze import prometheus_queries, stage
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.serve.serving_metrics import ServingMetrics
from tests.trainer.remote.webserver import Answer, Seen, WebServer
from tests.trainer.test_analyze import FIRST_TOKEN, traffic
from tests.trainer.test_analyze_prometheus import NEW, ONE_LOOK, analyze, gate, secret

NESTED = b"[" * 100_000
VALUE = b'{"data": {"resultType": "scalar", "result": [0, "0.3"]}}'


class SlowPrometheus(WebServer):
    """Responds after the pods have been read since the query."""

    def __init__(self) -> None:
        super().__init__()
        self.queried, self.read_since = threading.Event(), threading.Event()

    def traffic(self, metrics: ServingMetrics) -> None:
        """Traffic of a pod that notices when it is read."""
        traffic()(metrics)
        if self.queried.is_set():
            self.read_since.set()

    @override
    def answer(self, asked: Seen) -> Answer:
        self.queried.set()
        return Answer(VALUE) if self.read_since.wait(10) else Answer(status=400)


def test_pods_are_read_while_queries_are_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "SECONDS_BETWEEN_READINGS", 1.0)
    with SlowPrometheus() as prometheus:
        result = analyze(prometheus.endpoint, None, gate(max=0.5), new=prometheus.traffic, **ONE_LOOK)
    assert (result.verdict, result.figures[0].value) == ("Pass", 0.3)


def test_a_gate_of_the_pods_that_fails_does_not_wait_for_the_queries() -> None:
    with WebServer() as prometheus:
        slow = traffic(requests=9, seconds=5)
        result = analyze(prometheus.endpoint, None, FIRST_TOKEN, gate(max=0.5), new=slow)
        assert (result.verdict, result.seconds) == ("Fail", 60)
        assert prometheus.seen == []


def test_a_server_that_accepts_connections_and_hangs_holds_up_a_look_for_a_limited_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prometheus_queries, "LOOK_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        address = f"http://127.0.0.1:{hanging.getsockname()[1]}"
        result = analyze(address, None, gate(max_ratio=1.5), **ONE_LOOK)
    assert result.verdict == "Inconclusive"
    assert f"{address}: no response within 0.1 s; simplify the queries" in result.problem


class WrongServer(WebServer):
    """Responds with the same text to all requests."""

    def __init__(self, text: bytes, status: int) -> None:
        super().__init__()
        self.text, self.status = text, status

    @override
    def answer(self, asked: Seen) -> Answer:
        return Answer(self.text, self.status)


@pytest.mark.parametrize(
    ("text", "status", "problem"),
    [
        (NESTED, 200, "the response is not JSON"),
        (NESTED, 400, "status 400: Bad Request"),
        (VALUE.replace(b'"0.3"', b"9" * 400), 200, "the response is not that of a Prometheus"),
    ],
    ids=["nested", "nested error", "huge number"],
)
def test_a_response_that_cannot_be_read_is_inconclusive(text: bytes, status: int, problem: str) -> None:
    with WrongServer(text, status) as server:
        result = analyze(server.endpoint, None, gate(max=0.5), **ONE_LOOK)
        assert result.verdict == "Inconclusive"
        assert result.problem.startswith(f"prometheus/refusals of {NEW}: {server.endpoint}: {problem}")


@pytest.mark.parametrize("port", ["99999", "web"])
@pytest.mark.parametrize("has_secret", [False, True])
def test_an_address_with_an_impossible_port_is_named_before_anything_is_measured(
    tmp_path: Path, port: str, *, has_secret: bool
) -> None:
    mount = secret(tmp_path / "secret", endpoint="https://prometheus:9090") if has_secret else None
    with pytest.raises(
        StageFailure, match=rf"https://prometheus:{port}: Port .*; correct the address"
    ) as failed:
        analyze(f"https://prometheus:{port}", mount, gate(max=0.5))
    assert failed.value.reason == FailureReason.INVALID_CONFIG
