"""The operator as it runs in a cluster: a process with an environment, seen through probes and metrics."""

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

from tools.bench.errors import BenchError
from tools.bench.operator.waiting import until
from tools.cluster.ports import free_port

ANSWER_SECONDS: Final = 30
"""More than an operator needs that has no processor left for its probes."""
STOP_SECONDS: Final = 60


class OperatorProcess:
    """One process; `start` returns it active."""

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
        """Start with the release's defaults, and wait until it works.

        Args:
            kubeconfig: of the user that the audit log is to name.
            namespace: of its Lease.
            log: file that its log is appended to.
            patience: seconds that it may take.

        Raises:
            BenchError: it ended, or is not active in time.
        """
        port, report_port = free_port(), free_port()
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
            await started._until_active(patience)
        except BaseException:
            await started.kill()
            raise
        return started

    @property
    def seconds(self) -> float:
        """Since it was started."""
        return time.monotonic() - self._started

    async def metric(self, sample: str) -> float:
        """Value of a sample, written as in the text format; 0 where there is none.

        Raises:
            BenchError: the operator does not answer.
        """
        try:
            text = (await self._http.get("/metrics")).text
        except httpx.TransportError as error:
            why = str(error) or type(error).__name__
            raise BenchError(f"the operator does not answer ({why}): see {self._log}") from error
        values = (
            line.removeprefix(f"{sample} ") for line in text.splitlines() if line.startswith(f"{sample} ")
        )
        return float(next(values, 0))

    async def passes(self, kinds: Sequence[str]) -> float:
        """How many reconcile passes over these kinds have succeeded. Raises BenchError."""
        samples = (f'finetune_reconcile_seconds_count{{kind="{kind}",result="ok"}}' for kind in kinds)
        return sum([await self.metric(sample) for sample in samples])

    async def until_idle(
        self, kinds: Sequence[str], passes: float, seconds: float, progress: Callable[[str], None]
    ) -> None:
        """Until there were `passes` over these kinds, and no object waits for one.

        Raises:
            BenchError: not within `seconds`.
        """

        async def idle() -> bool:
            made = await self.passes(kinds)
            progress(f"the operator has reconciled {' and '.join(kinds)} {made:,.0f} times")
            return made >= passes and not await self.metric("finetune_queue_depth")

        what = f"{passes:,.0f} passes over {' and '.join(kinds)}"
        await until(idle, seconds, f"the operator has not made {what}: see {self._log}")

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

    async def _until_active(self, patience: float) -> None:
        failure = f"the operator is not active after {patience:.0f} s: see {self._log}"
        await until(self._is_active, patience, failure)

    async def _is_active(self) -> bool:
        if self._process.returncode is not None:
            raise BenchError(f"the operator ended with {self._process.returncode}: see {self._log}")
        with contextlib.suppress(httpx.TransportError):
            ready = (await self._http.get("/readyz")).status_code == HTTPStatus.OK
            return ready and await self.metric("finetune_active") == 1
        return False
