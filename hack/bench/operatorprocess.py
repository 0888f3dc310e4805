"""The operator as it runs in a cluster: a process with an environment, seen through probes and metrics."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from http import HTTPStatus
from pathlib import Path
from typing import Final, Self

import httpx

from hack.bench.errors import BenchError

START_SECONDS: Final = 60
STOP_SECONDS: Final = 60


class OperatorProcess:
    """One process; `start` returns it active."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, log: Path) -> None:
        self.pid = process.pid
        self._process = process
        self._http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False)
        self._log = log

    @classmethod
    async def start(cls, kubeconfig: Path, namespace: str, log: Path) -> Self:
        """Start with the release's defaults, and wait until it works.

        Args:
            kubeconfig: of the user that the audit log is to name.
            namespace: of its Lease.
            log: file that its log is appended to.

        Raises:
            BenchError: it ended, or is not active in time.
        """
        port, report_port = _free_port(), _free_port()
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "finetune_operator"),
                env={
                    "PATH": os.environ["PATH"],
                    "KUBECONFIG": str(kubeconfig),
                    "POD_NAMESPACE": namespace,
                    "TRAINER_IMAGE": "registry.example/trainer:1",
                    "HTTP_PORT": str(port),
                    "REPORT_PORT": str(report_port),
                },
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        started = cls(process, port, log)
        try:
            async with asyncio.timeout(START_SECONDS):
                await started._until_active()
        except TimeoutError as error:
            await started.kill()
            raise BenchError(f"the operator is not active after {START_SECONDS} s: see {log}") from error
        return started

    async def metric(self, sample: str) -> float:
        """Value of a sample, written as in the text format; 0 where there is none.

        Raises:
            BenchError: the operator does not answer.
        """
        try:
            text = (await self._http.get("/metrics")).text
        except httpx.TransportError as error:
            raise BenchError(f"the operator does not answer ({error}): see {self._log}") from error
        values = (
            line.removeprefix(f"{sample} ") for line in text.splitlines() if line.startswith(f"{sample} ")
        )
        return float(next(values, 0))

    async def stop(self) -> None:
        """Ask it to end, as a kubelet does, and wait for that.

        Raises:
            BenchError: it ended with an error, or not at all.
        """
        self._process.send_signal(signal.SIGTERM)
        try:
            code = await asyncio.wait_for(self._process.wait(), STOP_SECONDS)
        except TimeoutError as error:
            raise BenchError(f"the operator does not end: see {self._log}") from error
        if code:
            raise BenchError(f"the operator ended with {code}: see {self._log}")

    async def kill(self) -> None:
        """End it, if it runs."""
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        await self._http.aclose()

    async def _until_active(self) -> None:
        while True:
            if self._process.returncode is not None:
                raise BenchError(f"the operator ended with {self._process.returncode}: see {self._log}")
            with contextlib.suppress(httpx.TransportError):
                ready = (await self._http.get("/readyz")).status_code == HTTPStatus.OK
                if ready and await self.metric("finetune_active"):
                    return
            await asyncio.sleep(0.1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
