# SPDX-License-Identifier: Apache-2.0
"""python -m tools.bench.operator.health_probe PORT: response times of /healthz, one per line.

A process of its own measures them: work of the benchmark in the same process would count as a stall of the
operator.
"""

import asyncio
import contextlib
import sys
import time
from typing import Final

import httpx

from tools.bench.operator.deadlines import until

PROBE_SECONDS: Final = 0.02
PROBE_TIMEOUT_SECONDS: Final = 300
"""An operator that does not answer a probe for so long counts as dead."""


class HealthProbe:
    """Response times of an operator's /healthz. `run` measures them until it is cancelled.

    Attributes:
        responses: for each request, the time at which it was sent, by the monotonic clock, and the seconds
            until its response.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self.responses: list[tuple[float, float]] = []

    async def run(self) -> None:
        """Send a request every PROBE_SECONDS."""
        command = (sys.executable, "-m", "tools.bench.operator.health_probe", str(self._port))
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        try:
            async for line in process.stdout or asyncio.StreamReader():
                sent, seconds = map(float, line.split())
                self.responses.append((sent, seconds))
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def longest(self, since: float = 0.0) -> float:
        """Longest response time, in seconds, of the requests from `since` until now.

        Args:
            since: time by the monotonic clock.

        Raises:
            BenchError: a request that is sent now is not answered in time.
        """
        now = time.monotonic()

        async def is_answered() -> bool:
            return bool(self.responses) and self.responses[-1][0] > now

        await until(is_answered, PROBE_TIMEOUT_SECONDS, "the operator's /healthz does not answer")
        return max(seconds for sent, seconds in self.responses if sent + seconds >= since)


def _measure(port: int) -> None:
    with httpx.Client(trust_env=False, timeout=PROBE_TIMEOUT_SECONDS) as http:
        while True:
            sent = time.monotonic()
            # A request without a response counts too: it took as long as the client waited.
            with contextlib.suppress(httpx.TransportError):
                http.get(f"http://127.0.0.1:{port}/healthz")
            print(sent, time.monotonic() - sent, flush=True)
            time.sleep(PROBE_SECONDS)


if __name__ == "__main__":
    _measure(int(sys.argv[1]))
