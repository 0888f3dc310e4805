# SPDX-License-Identifier: Apache-2.0
"""The route to an endpoint, and requests on it."""

import socket
import sys
from dataclasses import replace

import pytest
from openai import OpenAIError
from typing_extensions import override

from finetune_client.access import Access
from finetune_client.endpoint import ask, ask_streamed, open_endpoint
from finetune_client.errors import OperationError
from tests.unit.client.openaiserver import OpenAIServer, serving


class Cluster(Access):
    """A Service with this port of the loopback, and a kubectl that prints `line` and waits."""

    def __init__(self, port: int, line: str = "") -> None:
        self.port = port
        self.line = line

    @override
    def service_address(self, namespace: str, name: str) -> tuple[str, int]:
        assert (namespace, name) == ("team", "support")
        return "127.0.0.1", self.port

    @override
    def kubectl_command(self, *arguments: str) -> list[str]:
        self.arguments = arguments
        return [sys.executable, "-c", f"import time; print({self.line!r}, flush=True); time.sleep(60)"]


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_a_service_that_this_machine_reaches_is_asked_directly() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        with open_endpoint(Cluster(port), "support", "team") as endpoint:
            assert (endpoint.url, endpoint.proxied) == (f"http://127.0.0.1:{port}/v1", False)


def test_another_service_is_reached_through_the_proxy_of_the_api_server(closed_port: int) -> None:
    cluster = Cluster(closed_port, "Starting to serve on 127.0.0.1:8001")
    with open_endpoint(cluster, "support", "team") as endpoint:
        path = f"api/v1/namespaces/team/services/support:{closed_port}/proxy/v1"
        assert cluster.arguments == ("proxy", "--port=0")
        assert (endpoint.url, endpoint.proxied) == (f"http://127.0.0.1:8001/{path}", True)


def test_a_proxy_that_does_not_start_is_an_error_with_its_message(closed_port: int) -> None:
    with (
        pytest.raises(OperationError, match="kubectl proxy did not start: no credentials"),
        open_endpoint(Cluster(closed_port, "no credentials"), "support", "team"),
    ):
        pass


def test_a_key_goes_through_a_forwarded_port_because_the_api_server_would_take_it(closed_port: int) -> None:
    cluster = Cluster(closed_port, "Forwarding from 127.0.0.1:40123 -> 8000")
    with open_endpoint(cluster, "support", "team", "sk-1") as endpoint:
        assert (endpoint.url, endpoint.key, endpoint.proxied) == ("http://127.0.0.1:40123/v1", "sk-1", False)
    forwarded = ("port-forward", "--namespace=team", "service/support", f":{closed_port}")
    assert cluster.arguments == (*forwarded, "--address=127.0.0.1")


def test_requests_through_the_api_server_carry_no_key() -> None:
    with serving() as endpoint:
        for served in (endpoint, replace(endpoint, proxied=True)):
            with served.client() as client:
                assert ask(client, "routing", "a") == "routing answers"
        assert OpenAIServer.keys == ["Bearer none", None]


def test_a_stream_must_reach_the_end_of_its_answer() -> None:
    with serving() as endpoint, endpoint.client() as client:
        assert ask_streamed(client, "routing", "a") == "routing answers"
        with pytest.raises(OpenAIError, match="the stream ended before the answer did"):
            ask_streamed(client, "cut", "a")


def test_refused_attempts_are_reported_even_if_a_later_one_is_answered() -> None:
    refused: list[None] = []
    with serving() as endpoint, endpoint.client(2, lambda: refused.append(None)) as client:
        assert ask(client, "busy", "a") == "busy answers"
    assert len(refused) == 1
