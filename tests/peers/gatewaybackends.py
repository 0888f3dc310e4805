# SPDX-License-Identifier: Apache-2.0
"""Pods that answer: a fake kubelet that gives each serving pod an address and an HTTP server on it."""

import json
import subprocess
import threading
import time
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from finetune_operator.api.labels import REVISION
from finetune_trainer.contract.environment import SERVE_PORT
from tests.fakekubelet import FakeKubelet, Object
from tests.fakenode import FakeNode
from tests.integration.api import Api, NotFound
from tools.cluster.toolchain import system_program

NODE: Final = "node-1"
NETWORK: Final = "10.99.0"
"""An EndpointSlice may not have addresses of 127.0.0.0/8."""
EVENTS: Final = 30
EVENT_SECONDS: Final = 0.1
"""A streamed answer: events, and the time between two of them."""


def add_network() -> None:
    """Make all addresses of NETWORK those of this network namespace."""
    subprocess.run(
        [system_program("ip", "iproute2"), "address", "replace", f"{NETWORK}.1/24", "dev", "lo"], check=True
    )


class ServingKubelet(FakeKubelet):
    """Runs serving pods. A terminating pod is removed at once, and its server answers on.

    A real pod answers on for the time of its drain: `late_seconds` shows how much of it was needed.
    """

    def __init__(self, api: Api, namespace: str) -> None:
        self._servers: dict[str, ThreadingHTTPServer] = {}
        self._removed: dict[str, float] = {}
        self._answered: dict[str, float] = defaultdict(float)
        # Pods of a node that is not ready are not in an EndpointSlice.
        self._node = FakeNode(api, NODE)
        super().__init__(api, namespace)

    def close(self) -> None:
        super().close()
        for server in self._servers.values():
            server.shutdown()
            server.server_close()

    @property
    def late_seconds(self) -> float:
        """The longest time between the removal of a pod and its last answer."""
        return max((self._answered[name] - at for name, at in self._removed.items()), default=0.0)

    def _step(self, pod: Object) -> None:
        self._node.beat()
        if "deletionTimestamp" in pod["metadata"]:
            self._removed.setdefault(pod["metadata"]["name"], time.monotonic())
            self._node.remove(pod)
        elif "nodeName" not in pod["spec"]:
            self._node.bind(pod)
        else:
            super()._step(pod)

    def _patch(self, pod: Object, status: Object) -> bool:
        name, revision = pod["metadata"]["name"], pod["metadata"]["labels"][REVISION]
        if name not in self._servers:
            self._servers[name] = self._serve(f"{NETWORK}.{len(self._servers) + 2}", name, revision)
        address = self._servers[name].server_address[0]
        try:
            return super()._patch(pod, status | {"podIP": address, "podIPs": [{"ip": address}]})
        except NotFound:
            return False

    def _serve(self, address: str, pod: str, revision: str) -> ThreadingHTTPServer:
        answered = self._answered

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                answered[pod] = time.monotonic()
                if self.path == "/v1/stream":
                    self._stream()
                    return
                self.send_response(200)
                body = json.dumps({"revision": revision}).encode()
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def _stream(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                for number in range(EVENTS):
                    event = f"data: {revision} {number}\n\n".encode()
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
                    self.wfile.flush()
                    time.sleep(EVENT_SECONDS)
                self.wfile.write(b"0\r\n\r\n")

            def log_message(self, *_: Any) -> None:
                """Write no log."""

        server = ThreadingHTTPServer((address, SERVE_PORT), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, name=pod, daemon=True).start()
        return server
