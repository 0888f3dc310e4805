# SPDX-License-Identifier: Apache-2.0
"""The server's process in its pod: start, drain, exit and failure."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from finetune_trainer.contract.serving import ServedModel
from finetune_trainer.contract.vocabulary import ExitCode
from tests.trainer.processes import start_fresh
from tests.trainer.serve.endpoint import DEADLINE_SECONDS, ServerProcess, wait_until

CHAT: dict[str, Any] = {"model": "base", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}


@pytest.fixture(scope="module")
def start(root: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Start servers, and stop them after the tests."""
    with ExitStack() as stack:

        def start(**settings: Any) -> ServerProcess:
            server = ServerProcess(root, **settings)
            stack.callback(server.close)
            return server

        yield start


@pytest.fixture(scope="module")
def pair(start: Callable[..., ServerProcess]) -> tuple[ServerProcess, ServerProcess]:
    """Two ready servers: the first test ends one of them, the second test the other."""
    servers = (start(how=start_fresh, drain_seconds=2), start(drain_seconds=1))
    wait_until(lambda: all(server.health() == 200 for server in servers))
    return servers


class Client:
    """Client that keeps its connection and sends requests repeatedly, as a program in a cluster does."""

    def __init__(self, target: Callable[[], str]) -> None:
        self.answered: list[str] = []
        self.failures: list[str] = []
        self._target = target
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with httpx.Client(timeout=DEADLINE_SECONDS) as http:
            while not self._stop.is_set():
                url = self._target()
                try:
                    answer = http.post(f"{url}/v1/chat/completions", json=CHAT)
                except httpx.TransportError as error:
                    self.failures.append(repr(error))
                else:
                    if answer.status_code != httpx.codes.OK:
                        self.failures.append(answer.text)
                    self.answered.append(url)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def test_no_request_fails_while_one_server_gives_way_to_another(
    pair: tuple[ServerProcess, ServerProcess],
) -> None:
    old, new = pair
    endpoints = {"target": old.url}
    clients = [Client(lambda: endpoints["target"]) for _ in range(3)]
    wait_until(lambda: all(client.answered for client in clients))

    # As in a cluster: SIGTERM, while the endpoint leaves the Service.
    old.process.send_signal(signal.SIGTERM)
    wait_until(lambda: old.health() == 503)
    closing = old.http.post("/v1/chat/completions", json=CHAT)
    endpoints["target"] = new.url
    code, log = old.end()
    wait_until(lambda: all(client.answered[-1] == new.url for client in clients))
    for client in clients:
        client.stop()

    assert code == 0, log
    assert closing.status_code == 200
    assert closing.headers["connection"] == "close"
    assert [client.failures for client in clients] == [[], [], []]


def test_a_drain_finishes_what_is_in_flight(
    pair: tuple[ServerProcess, ServerProcess],
) -> None:
    _, server = pair
    # Longer than the drain on any machine: the rest of the context, in every slot.
    streams = [
        server.openai.completions.create(
            model="base", prompt="The licence", max_tokens=500, temperature=2, seed=seed, stream=True
        )
        for seed in range(8)
    ]
    firsts = [next(iter(stream)) for stream in streams]
    server.process.send_signal(signal.SIGTERM)
    wait_until(lambda: server.health() == 503)
    late = server.openai.chat.completions.create(**CHAT)
    ends = [list(stream)[-1] for stream in streams]
    code, log = server.end()

    assert firsts
    assert late.usage is not None
    assert {end.choices[0].finish_reason for end in ends} <= {"stop", "length"}
    assert code == 0, log


def test_probes_are_answered_while_the_models_load(start: Callable[..., ServerProcess]) -> None:
    server = start(how=start_fresh)
    wait_until(lambda: server.health() is not None)

    assert server.health() == 503
    with pytest.raises(openai.InternalServerError) as early:
        server.openai.chat.completions.create(**CHAT)
    assert early.value.status_code == 503
    assert early.value.code == "model_not_ready"
    assert early.value.response.headers["retry-after"] == "5"

    server.process.send_signal(signal.SIGTERM)
    code, log = server.end()
    assert code == 0, log


def test_a_model_that_cannot_be_loaded_ends_the_process_with_the_reason(
    start: Callable[..., ServerProcess],
) -> None:
    server = start(models=(ServedModel(name="tickets", folder="missing"),))

    code, log = server.end()

    assert code == ExitCode.BAD_CONFIG
    assert "ArtifactNotFound: model 'tickets': " in log
    assert "missing/adapter_config.json is missing" in log


def test_a_port_in_use_ends_the_process_with_the_reason(start: Callable[..., ServerProcess]) -> None:
    first = start()
    wait_until(lambda: first.health() is not None)

    second = start(port=int(first.url.rpartition(":")[2]))

    code, log = second.end()
    assert code == ExitCode.BAD_CONFIG
    assert "cannot listen on port" in log
