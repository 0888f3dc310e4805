"""What the audit log says about a measurement: requests by client and verb, and when each run got how far."""

import asyncio
import math
import statistics
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Final, NamedTuple

from tools.bench.errors import BenchError
from tools.bench.operator.waiting import STUCK_SECONDS
from tools.bench.operator.workload import LAST_STAGE, NAMESPACE
from tools.cluster.audit import IGNORED_RESOURCES, AuditLog

OPERATOR: Final = "operator"
USER: Final = "user"
KUBELET: Final = "fake-kubelet"
JOBSET: Final = "jobset"
TRAINER: Final = "trainer"
CONTROLLER: Final = "system:serviceaccount:kube-system:"
QUIET_SECONDS: Final = 2.0
"""Longer than any chain of events that one write sets off."""
POLL_SECONDS: Final = 0.2
LONG_AGO: Final = datetime.fromtimestamp(0, UTC)
"""Before the first write: requests that only read are waited for no longer than they take."""


class Spread(NamedTuple):
    """Seconds that half of the runs and 99 of 100 took at most, each from its own creation; and those from
    the first creation until the last run was there."""

    p50: float
    p99: float
    last: float


class Requests(NamedTuple):
    """Answered requests by (client, verb), leases and token reviews apart."""

    by: Counter[tuple[str, str]]

    def of(self, *clients: str) -> int:
        """How many these clients made."""
        return sum(count for (client, _), count in self.by.items() if client in clients)


class RequestLedger:
    """Reads on from where it was made.

    Attributes:
        created: when the API server had answered the creation of each run, or Job of a user.
        first_jobs: when the first Job of each run existed, and each Job of a user.
        last_stage: runs whose last stage has a Job.
        last_written: when the operator last wrote the status of each run.
    """

    def __init__(self, log: AuditLog) -> None:
        self.created: dict[str, datetime] = {}
        self.first_jobs: dict[str, datetime] = {}
        self.last_stage: set[str] = set()
        self.last_written: dict[str, datetime] = {}
        self.operator_writes = 0
        self._requests: Counter[tuple[str, str]] = Counter()
        self._last_write = LONG_AGO
        self._log = log
        self._mark = log.mark()

    @property
    def requests(self) -> Requests:
        """All up to now."""
        return Requests(self._requests.copy())

    def read(self) -> None:
        """Take over what was answered since the last time."""
        for asked, mark in self._log.read(self._mark):
            self._mark = mark
            if asked.resource in IGNORED_RESOURCES:
                continue
            self._requests[_client(asked.user), asked.verb] += 1
            if not asked.is_write:
                continue
            self._last_write = max(self._last_write, asked.at)
            self.operator_writes += asked.user == OPERATOR
            if asked.namespace != NAMESPACE or asked.code >= 300:
                continue
            match asked.user, asked.resource:
                case "user", "finetunejobs" | "trainjobs":
                    self.created[asked.name] = asked.at
                case "user", "jobs":
                    self.created[asked.name] = self.first_jobs[asked.name] = asked.at
                case "jobset", "jobs":
                    # <TrainJob>-node-0
                    self.first_jobs.setdefault(asked.name.removesuffix("-node-0"), asked.at)
                case "operator", "jobs":
                    # <run>-<stage>-<5 characters>
                    run, stage, _ = asked.name.rsplit("-", 2)
                    self.first_jobs.setdefault(run, asked.at)
                    if stage == LAST_STAGE:
                        self.last_stage.add(run)
                case "operator", "finetunejobs/status":
                    self.last_written[asked.name] = asked.at

    async def have_first_jobs(self, runs: int) -> bool:
        """Whether `runs` runs have their first Job, as of the last read."""
        return len(self.first_jobs) == runs

    async def until_quiet(self, reached: Callable[[], Awaitable[bool]] | None = None, what: str = "") -> None:
        """Read until no client has written for QUIET_SECONDS and `reached` is true.

        Raises:
            BenchError: no client wrote for STUCK_SECONDS, and `reached`, which is `what` in words, is false.
        """
        while True:
            self.read()
            quiet_seconds = (datetime.now(UTC) - self._last_write).total_seconds()
            if quiet_seconds > QUIET_SECONDS and (reached is None or await reached()):
                return
            if quiet_seconds > STUCK_SECONDS:
                raise BenchError(
                    f"no client writes any more, and {len(self.created):,} runs are created,"
                    f" {len(self.first_jobs):,} have a Job; expected: {what}"
                )
            await asyncio.sleep(POLL_SECONDS)

    def spread(self, reached: Mapping[str, datetime], pause: float = 0) -> Spread:
        """How long the runs took to get there.

        Args:
            reached: when each run got there.
            pause: seconds between creation and that, in which the measurement held everything up.
        """
        each = sorted((at - self.created[name]).total_seconds() - pause for name, at in reached.items())
        last = (max(reached.values()) - min(self.created.values())).total_seconds() - pause
        return Spread(statistics.median(each), each[math.ceil(0.99 * len(each)) - 1], last)


def _client(user: str) -> str:
    """Controllers by their short names; what else there is of the system's in one."""
    if user.startswith(CONTROLLER):
        return user.removeprefix(CONTROLLER)
    return "system" if user.startswith("system:") else user
