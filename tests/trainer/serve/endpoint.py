# SPDX-License-Identifier: Apache-2.0
"""Runs a server for clients, on its own port, in this process or another one."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai

from finetune_trainer.contract.references import Owner
from finetune_trainer.contract.serving import ServeConfig, ServedModel
from finetune_trainer.serve.app import DrainingServer, application, listen
from finetune_trainer.serve.service import Service
from tests.trainer.processes import THREADS_ENV, Process, start
from tests.trainer.serve.models import ADAPTERS
from tools.cluster.layout import free_port

DEADLINE_SECONDS = 300.0


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"still not so after {DEADLINE_SECONDS:.0f} seconds"
        time.sleep(0.02)


def serve_config(root: Path, port: int = 0, kind: str = "llama", **settings: Any) -> ServeConfig:
    """A base model and its two adapters."""
    defaults: dict[str, Any] = {
        "owner": Owner(kind="InferenceDeployment", namespace="team", name="tickets", uid="1"),
        "base_folder": kind,
        "models": tuple(ServedModel(name=name, folder=f"{kind}-{name}") for name in ADAPTERS),
        "models_path": str(root),
        "port": port,
        "drain_seconds": 0,
    }
    return ServeConfig(**{**defaults, **settings})


class Endpoint:
    """Clients of one server."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.http = httpx.Client(base_url=self.url, timeout=DEADLINE_SECONDS)
        self.openai = self.sdk(max_retries=0)

    def sdk(self, **settings: Any) -> openai.OpenAI:
        """OpenAI's client, as users have it."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", timeout=DEADLINE_SECONDS, **settings)

    def health(self) -> int | None:
        """Return the status of /health; None without a listener."""
        try:
            return self.http.get("/health").status_code
        except httpx.TransportError:
            return None

    def metric(self, sample: str) -> float:
        """Return the value of one sample line, or 0 without one."""
        lines = self.http.get("/metrics").text.splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(sample + " ")), 0.0)


@contextmanager
def served_here(config: ServeConfig) -> Iterator[Endpoint]:
    """Run a ready server in a thread of this process, without handlers of signals."""
    service = Service(config)
    server = DrainingServer(
        application(service), service.drain, lambda: service.broken, lambda: service.loading
    )
    with listen(0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        endpoint = Endpoint(listener.getsockname()[1])
        try:
            wait_until(lambda: endpoint.health() == 200 or not thread.is_alive())
            yield endpoint
        finally:
            endpoint.http.close()
            server.should_exit = True
            thread.join()
    service.raise_failure()


class ServerProcess(Endpoint):
    """A server as a pod runs it."""

    def __init__(self, root: Path, how: Callable[..., Process] = start, **settings: Any) -> None:
        port = settings.pop("port", None) or free_port()
        super().__init__(port)
        self.process = how(serve_config(root, port, **settings), environ={THREADS_ENV: "1"})

    def end(self) -> tuple[int, str]:
        """Wait for exit code and log."""
        return self.process.wait(), self.process.output

    def close(self) -> None:
        """Clean up, whatever the test did."""
        self.http.close()
        self.process.kill()
