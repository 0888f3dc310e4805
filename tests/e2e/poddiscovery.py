# SPDX-License-Identifier: Apache-2.0
"""Service discovery of pods for a Prometheus without a client of Kubernetes, such as that of Debian."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

from finetune_client.backend import Object
from tests.e2e.team import Team, name_of

OTHER_CHARACTERS: Final = re.compile(r"[^a-zA-Z0-9_]")


@contextmanager
def discovery_of(team: Team, selector: str) -> Iterator[str]:
    """URL of the targets of a team's pods, for `http_sd_configs`, with the labels that `role: pod` gives."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            pods = team.access.pods(team.namespace, selector)
            body = json.dumps([target for pod in pods for target in _targets(pod)]).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()


def _targets(pod: Object) -> Iterator[Object]:
    """A target for each port of a pod that has an address."""
    address = pod["status"].get("podIP")
    labels = {
        "__meta_kubernetes_namespace": pod["metadata"]["namespace"],
        "__meta_kubernetes_pod_name": name_of(pod),
    }
    for key, value in pod["metadata"]["labels"].items():
        name = OTHER_CHARACTERS.sub("_", key)
        labels[f"__meta_kubernetes_pod_label_{name}"] = value
        labels[f"__meta_kubernetes_pod_labelpresent_{name}"] = "true"
    for container in pod["spec"]["containers"] if address else ():
        for port in container.get("ports", ()):
            own = {"__meta_kubernetes_pod_container_port_name": port.get("name", "")}
            yield {"targets": [f"{address}:{port['containerPort']}"], "labels": labels | own}
