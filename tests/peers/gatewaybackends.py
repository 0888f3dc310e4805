"""Pods that answer: a fake kubelet that gives each serving pod an address and an HTTP server on it."""

import json
import subprocess
import threading
import time
from collections import defaultdict
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

import httpx

from finetune_operator.manifests.labels import REVISION
from finetune_trainer.contract.environment import SERVE_PORT
from tests.fakekubelet import FakeKubelet, Object
from tests.integration.api import Api, NotFound, path_of
from tools.cluster.toolchain import system_program

NODE: Final = "node-1"
NETWORK: Final = "10.99.0"
"""An EndpointSlice may not have addresses of 127.0.0.0/8."""
BEAT_SECONDS: Final = 5.0
GONE: Final = {httpx.codes.NOT_FOUND, httpx.codes.CONFLICT}
"""Answers for a pod that was deleted after it was listed."""
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
        self._requests = api
        self._servers: dict[str, ThreadingHTTPServer] = {}
        self._removed: dict[str, float] = {}
        self._answered: dict[str, float] = defaultdict(float)
        self._beaten = 0.0
        api.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}})
        self._beat()
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

    def _beat(self) -> None:
        """Report the node as ready, because pods of another node are not in an EndpointSlice."""
        if time.monotonic() - self._beaten < BEAT_SECONDS:
            return
        self._beaten = time.monotonic()
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": now}
        self._requests.patch("Node", "", NODE, {"status": {"conditions": [ready]}}, "status")

    def _step(self, pod: Object) -> None:
        self._beat()
        metadata = pod["metadata"]
        path = path_of("Pod", metadata["namespace"], metadata["name"])
        if "deletionTimestamp" in metadata:
            self._removed.setdefault(metadata["name"], time.monotonic())
            answer = self._requests.request("DELETE", f"{path}?gracePeriodSeconds=0")
            if answer.status_code not in GONE:
                answer.raise_for_status()
        elif "nodeName" not in pod["spec"]:
            target = {"apiVersion": "v1", "kind": "Node", "name": NODE}
            binding = {"metadata": {"name": metadata["name"]}, "target": target}
            body = {"apiVersion": "v1", "kind": "Binding", **binding}
            answer = self._requests.request("POST", f"{path}/binding", body)
            if answer.status_code not in GONE:
                answer.raise_for_status()
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
