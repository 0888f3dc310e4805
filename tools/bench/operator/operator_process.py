# SPDX-License-Identifier: Apache-2.0
"""Run the operator as a process, as in a cluster, and observe it through its probes and metrics."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Final, Self

import httpx

from tools.bench.operator.deadlines import until
from tools.bench.page import BenchError
from tools.cluster.layout import free_port
from tools.cluster.processes import WITH_PARENT

ANSWER_SECONDS: Final = 30
"""Timeout of a request; more than a busy operator needs to answer."""
SCRAPE_SECONDS: Final = 0.5
"""Time between two scrapes, which is also the resolution of `until_idle`. A scrape takes milliseconds of the
operator's processor time."""
STOP_SECONDS: Final = 60


class OperatorProcess:
    """One operator process. `start` returns it when it is active."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, log: Path) -> None:
        self.pid = process.pid
        self.port = port
        self._started = time.monotonic()
        self._process = process
        self._http = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=ANSWER_SECONDS
        )
        self._log = log

    @classmethod
    async def start(cls, kubeconfig: Path, namespace: str, log: Path, patience: float) -> Self:
        """Start an operator with the release's defaults, and wait until it is active.

        Args:
            kubeconfig: kubeconfig of the user whose name the audit log gets.
            namespace: namespace of its Lease.
            log: file that its log is appended to.
            patience: maximum wait in seconds.

        Raises:
            BenchError: it ended, or was not active in time.
        """
        port, report_port = free_port(), free_port()
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *(*WITH_PARENT, sys.executable, "-m", "finetune_operator"),
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
            await started._until_active(patience)
        except BaseException:
            await started.kill()
            raise
        return started

    @property
    def seconds(self) -> float:
        """Seconds since its start."""
        return time.monotonic() - self._started

    async def metric(self, sample: str) -> float:
        """Value of a sample, given as in the text format; 0 if there is none.

        Raises:
            BenchError: the operator does not answer.
        """
        (value,) = await self._metrics(sample)
        return value

    async def _metrics(self, *samples: str) -> list[float]:
        """Values of several samples from one scrape, because each scrape takes time from what is measured."""
        try:
            text = (await self._http.get("/metrics")).text
        except httpx.TransportError as error:
            cause = str(error) or type(error).__name__
            raise BenchError(f"the operator does not answer ({cause}); see {self._log}") from error
        values = dict(line.rpartition(" ")[::2] for line in text.splitlines() if not line.startswith("#"))
        return [float(values.get(sample, 0)) for sample in samples]

    async def passes(self, kinds: Sequence[str]) -> float:
        """Number of successful reconcile passes over these kinds.

        Raises:
            BenchError: the operator does not answer.
        """
        return sum(await self._metrics(*map(_passes, kinds)))

    async def until_idle(
        self, kinds: Sequence[str], passes: float, seconds: float, progress: Callable[[str], None]
    ) -> None:
        """Wait until there were `passes` passes over these kinds and the queue is empty.

        Raises:
            BenchError: this did not happen within `seconds`.
        """
        names = " and ".join(kinds)

        async def idle() -> bool:
            depth, *counts = await self._metrics("finetune_queue_depth", *map(_passes, kinds))
            done = sum(counts)
            progress(f"{done:,.0f} reconcile passes over {names}")
            return done >= passes and not depth

        failure = f"the operator made fewer than {passes:,.0f} passes over {names}; see {self._log}"
        await until(idle, seconds, failure, SCRAPE_SECONDS)

    async def stop(self) -> None:
        """Send SIGTERM, as a kubelet does, and wait until the process has ended.

        Raises:
            BenchError: it ended with an error, or not in time.
        """
        self._process.send_signal(signal.SIGTERM)
        try:
            code = await asyncio.wait_for(self._process.wait(), STOP_SECONDS)
        except TimeoutError as error:
            raise BenchError(f"the operator did not end within {STOP_SECONDS} s; see {self._log}") from error
        if code:
            raise BenchError(f"the operator ended with exit code {code}; see {self._log}")

    async def kill(self) -> None:
        """Kill the process if it runs."""
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        await self._http.aclose()

    async def _until_active(self, patience: float) -> None:
        failure = f"the operator was not active after {patience:.0f} s; see {self._log}"
        await until(self._is_active, patience, failure)

    async def _is_active(self) -> bool:
        if self._process.returncode is not None:
            code = self._process.returncode
            raise BenchError(f"the operator ended with exit code {code}; see {self._log}")
        with contextlib.suppress(httpx.TransportError):
            ready = (await self._http.get("/readyz")).status_code == HTTPStatus.OK
            return ready and await self.metric("finetune_active") == 1
        return False


def _passes(kind: str) -> str:
    """The sample with the number of successful passes over a kind."""
    return f'finetune_reconcile_seconds_count{{kind="{kind}",result="ok"}}'
