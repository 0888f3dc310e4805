# SPDX-License-Identifier: Apache-2.0
"""Evaluate the audit log of a measurement: requests by client and verb, and the progress of each run."""

import asyncio
import math
import statistics
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Final, NamedTuple

from tools.bench.operator.deadlines import STUCK_SECONDS
from tools.bench.operator.workload import LAST_STAGE, NAMESPACE
from tools.bench.page import BenchError
from tools.cluster.audit import IGNORED_RESOURCES, AuditLog

OPERATOR: Final = "operator"
USER: Final = "user"
KUBELET: Final = "fake-kubelet"
JOBSET: Final = "jobset"
TRAINER: Final = "trainer"
CONTROLLER: Final = "system:serviceaccount:kube-system:"
QUIET_SECONDS: Final = 2.0
"""Longer than any sequence of reactions to one write."""
POLL_SECONDS: Final = 0.2
LONG_AGO: Final = datetime.fromtimestamp(0, UTC)
"""Time of the last write before there is one, so that a measurement without writes does not wait."""


class Spread(NamedTuple):
    """Seconds until the runs reached a state."""

    p50: float
    """Median, each run from its own creation."""
    p99: float
    """99th percentile, each run from its own creation."""
    last: float
    """From the first creation until the last run reached the state."""


class Requests(NamedTuple):
    """Number of answered requests by (client, verb), without leases and token reviews."""

    by: Counter[tuple[str, str]]

    def of(self, *clients: str) -> int:
        """Number of requests of these clients."""
        return sum(count for (client, _), count in self.by.items() if client in clients)


class RequestLedger:
    """Reads the audit log from the time of its own creation.

    Attributes:
        created: by run (or a user's Job): time of its creation.
        first_jobs: by run (or a user's Job): time of the creation of its first Job.
        last_stage: names of the runs whose last stage has a Job.
        last_written: by run: time of the operator's last write of its status.
        operator_writes: number of writes of the operator.
    """

    def __init__(self, log: AuditLog) -> None:
        self.created: dict[str, datetime] = {}
        self.first_jobs: dict[str, datetime] = {}
        self.last_stage: set[str] = set()
        self.last_written: dict[str, datetime] = {}
        self.operator_writes = 0
        self._requests: Counter[tuple[str, str]] = Counter()
        self._last_write = self._last_list = LONG_AGO
        self._log = log
        self._mark = log.mark()

    @property
    def requests(self) -> Requests:
        """All requests up to the last `read`."""
        return Requests(self._requests.copy())

    def read(self) -> None:
        """Count the requests that were answered since the last call."""
        for request, mark in self._log.read(self._mark):
            self._mark = mark
            if request.resource in IGNORED_RESOURCES:
                continue
            self._requests[_client(request.user), request.verb] += 1
            if (request.user, request.verb) == (OPERATOR, "list"):
                self._last_list = max(self._last_list, request.at)
            if not request.is_write:
                continue
            self._last_write = max(self._last_write, request.at)
            self.operator_writes += request.user == OPERATOR
            if request.namespace != NAMESPACE or request.code >= 300:
                continue
            match request.user, request.resource:
                case "user", "finetunejobs" | "trainjobs":
                    self.created[request.name] = request.at
                case "user", "jobs":
                    self.created[request.name] = self.first_jobs[request.name] = request.at
                case "jobset", "jobs":
                    # <TrainJob>-node-0
                    self.first_jobs.setdefault(request.name.removesuffix("-node-0"), request.at)
                case "operator", "jobs":
                    # <run>-<stage>-<5 characters>
                    run, stage, _ = request.name.rsplit("-", 2)
                    self.first_jobs.setdefault(run, request.at)
                    if stage == LAST_STAGE:
                        self.last_stage.add(run)
                case "operator", "finetunejobs/status":
                    self.last_written[request.name] = request.at

    async def have_first_jobs(self, runs: int) -> bool:
        """Whether `runs` runs have their first Job, as of the last `read`."""
        return len(self.first_jobs) == runs

    async def until_quiet(
        self, condition: Callable[[], Awaitable[bool]] | None = None, expected: str = ""
    ) -> None:
        """Read until no client has written for QUIET_SECONDS and `condition` is true.

        Args:
            condition: checked when no client writes; None for no condition.
            expected: description of the condition for the error message.

        Raises:
            BenchError: no client has written for STUCK_SECONDS, and `condition` is false.
        """
        while True:
            self.read()
            quiet_seconds = (datetime.now(UTC) - self._last_write).total_seconds()
            if quiet_seconds > QUIET_SECONDS and (condition is None or await condition()):
                return
            if quiet_seconds > STUCK_SECONDS:
                raise BenchError(
                    f"no client has written for {STUCK_SECONDS:.0f} s: {len(self.created):,} runs exist and"
                    f" {len(self.first_jobs):,} have a Job; expected: {expected}"
                )
            await asyncio.sleep(POLL_SECONDS)

    async def is_idle(self) -> bool:
        """Whether no client has written, and the operator has listed nothing, for QUIET_SECONDS."""
        self.read()
        latest = max(self._last_write, self._last_list)
        return (datetime.now(UTC) - latest).total_seconds() > QUIET_SECONDS

    def spread(self, reached: Mapping[str, datetime], pause: float = 0) -> Spread:
        """Time from the creation of the runs until they reached a state.

        Args:
            reached: by run: when it reached the state.
            pause: seconds to subtract, in which the benchmark let no pod start.
        """
        each = sorted((at - self.created[name]).total_seconds() - pause for name, at in reached.items())
        last = (max(reached.values()) - min(self.created.values())).total_seconds() - pause
        return Spread(statistics.median(each), each[math.ceil(0.99 * len(each)) - 1], last)


def _client(user: str) -> str:
    """Short name of a controller; `system` for all other users of Kubernetes itself."""
    if user.startswith(CONTROLLER):
        return user.removeprefix(CONTROLLER)
    return "system" if user.startswith("system:") else user
