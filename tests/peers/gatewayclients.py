# SPDX-License-Identifier: Apache-2.0
"""Clients of an endpoint behind the gateway."""

import http.client
import json
import threading
from collections import Counter
from typing import Any, Final, NamedTuple, Self

HOST: Final = "127.0.0.1"
CLIENTS: Final = 4
PAUSE_SECONDS: Final = 0.04
"""Pause of each client between two requests."""
TIMEOUT_SECONDS: Final = 10
LATEST: Final = 100
"""Number of answers that show where requests go now."""


class Answer(NamedTuple):
    """What one request got: the name of the revision that answered, or an error in parentheses."""

    revision: str

    @property
    def failed(self) -> bool:
        return self.revision.startswith("(")


class Client:
    """A client with a connection of its own that stays open."""

    def __init__(self, port: int, hostname: str) -> None:
        self._port = port
        self._hostname = hostname
        self._connection = self._connect()

    def ask(self, **headers: str) -> Answer:
        """Send one request. It is not retried."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            self._connection.request("GET", "/v1/models", headers={"Host": self._hostname, **named})
            response = self._connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            self._connection = self._connect()
            return Answer(f"({type(error).__name__})")
        return Answer(json.loads(body)["revision"] if response.status == 200 else f"({response.status})")

    def stream(self) -> tuple[int, int]:
        """Read a streamed answer to its end. Returns the status and the number of events."""
        self._connection.request("GET", "/v1/stream", headers={"Host": self._hostname})
        response = self._connection.getresponse()
        return response.status, response.read().decode().count("data: ")

    def close(self) -> None:
        self._connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(HOST, self._port, timeout=TIMEOUT_SECONDS)


def count(client: Client, requests: int, **headers: str) -> dict[str, int]:
    """Number of answers by revision."""
    return dict(Counter(client.ask(**headers).revision for _ in range(requests)))


class Load:
    """Clients that send requests from `with` to its end."""

    def __init__(self, port: int, hostname: str) -> None:
        self.answers: list[Answer] = []
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(port, hostname)) for _ in range(CLIENTS)]

    @property
    def failed(self) -> list[Answer]:
        return [each for each in self.answers if each.failed]

    @property
    def latest(self) -> set[str]:
        """Revisions that gave the latest answers."""
        return {each.revision for each in self.answers[-LATEST:]}

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, port: int, hostname: str) -> None:
        client = Client(port, hostname)
        while not self._end.wait(PAUSE_SECONDS):
            self.answers.append(client.ask())
        client.close()
