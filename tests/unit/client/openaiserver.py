# SPDX-License-Identifier: Apache-2.0
"""A server of the OpenAI API whose models fail in different ways."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

from finetune_client.endpoint import Endpoint


class OpenAIServer(BaseHTTPRequestHandler):
    """Answers with the model's name.

    Every second request to the model `flaky` gets an error, each first attempt at `busy` and each one at
    `overloaded` is refused, and `slow` answers when a test permits it. Models of SPOKEN stream these pieces.
    """

    SPOKEN: ClassVar[dict[str, tuple[dict[str, str], ...]]] = {
        "thinking": ({"reasoning": "hm"}, {"content": "dispatch"}, {"content": "-bay"}),
        "hostile": ({"content": "\x1b]0;owned\x07"}, {"content": "\x9b31mred\rover\tand\nout"}),
    }
    bodies: ClassVar[list[dict[str, Any]]] = []

    asked = open = most_open = 0
    lock = threading.Lock()
    answers = threading.Semaphore(0)
    keys: ClassVar[list[str | None]] = []
    """The header Authorization of each request."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.bodies.append(body)
        model, attempt = body["model"], int(self.headers["x-stainless-retry-count"])
        with self.lock:
            self.keys.append(self.headers["Authorization"])
            type(self).asked += 1
            type(self).open += 1
            type(self).most_open = max(self.open, self.most_open)
            broken = model == "flaky" and self.asked % 2 == 0
        if model == "slow":
            self.answers.acquire(timeout=60)
        with self.lock:
            type(self).open -= 1
        if model == "overloaded" or (model == "busy" and attempt == 0):
            self.send_response(429)
            self.send_header("retry-after-ms", "1")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if model == "missing":
            self.send_error(404)
            return
        message = {"role": "assistant", "content": f"{body['model']}\n answers"}
        answer = {
            "id": "1", "object": "chat.completion", "created": 1, "model": body["model"],
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        }  # fmt: skip
        content = json.dumps({"error": {"message": "no"}} if broken else answer).encode()
        if body.get("stream"):
            answer["object"] = "chat.completion.chunk"
            reason = None if body["model"] == "cut" else "stop"
            deltas = self.SPOKEN.get(body["model"], (message,))
            content = b""
            for number, delta in enumerate(deltas, 1):
                end = reason if number == len(deltas) else None
                answer["choices"] = [{"index": 0, "finish_reason": end, "delta": delta}]
                content += f"data: {json.dumps(answer)}\n\n".encode()
        self.send_response(500 if broken else 200)
        self.send_header("Content-Type", "text/event-stream" if body.get("stream") else "application/json")
        self.send_header("Content-Length", str(len(content)))
        # The client of a slow answer has timed out.
        with suppress(BrokenPipeError, ConnectionResetError):
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Log nothing, to keep pytest's output clean."""


@contextmanager
def serving() -> Iterator[Endpoint]:
    """The server, which runs during the block."""
    OpenAIServer.open = OpenAIServer.most_open = 0
    OpenAIServer.answers = threading.Semaphore(0)
    OpenAIServer.keys.clear()
    OpenAIServer.bodies.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), OpenAIServer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield Endpoint(f"http://127.0.0.1:{server.server_port}/v1", "the loopback")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
