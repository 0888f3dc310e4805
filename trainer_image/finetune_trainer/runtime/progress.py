# SPDX-License-Identifier: Apache-2.0
"""Progress of work, counted and sent to the operator and the log at limited rates.

A stage never waits for a report to the operator and never fails because of it.
"""

import logging
import os
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import httpx

from finetune_trainer.contract.base import CONTRACT_VERSION
from finetune_trainer.contract.environment import PROGRESS_ENV, REPORT_PATH, REPORT_TOKEN_PATH
from finetune_trainer.contract.references import Owner, ReportTarget
from finetune_trainer.contract.results import Progress, Report
from finetune_trainer.contract.vocabulary import Stage
from finetune_trainer.runtime.logs import SCRUBBER, one_line

REPORT_INTERVAL_SECONDS: Final = 2.0
"""Min time between two reports. The operator shows one every 10 seconds."""
FIRST_RETRY_SECONDS: Final = 1.0
MAX_RETRY_SECONDS: Final = 30.0
REQUEST_TIMEOUT_SECONDS: Final = 10.0
WARNING_INTERVAL_SECONDS: Final = 60.0
"""Min time between two warnings about an unreachable endpoint."""

REJECTED_STATUS_CODES: Final = frozenset({400, 413, 422})
"""Responses that concern the report itself, so that a retry cannot help."""

logger = logging.getLogger(__name__)


class Reporter:
    """Sends the newest progress from its own thread, and drops older progress that was not sent.

    Does nothing without a target. Outside a pod, `PROGRESS_ENV` may name a file, which gets the newest
    progress.
    """

    def __init__(
        self,
        target: ReportTarget | None,
        owner: Owner,
        stage: Stage,
        token_path: Path = Path(REPORT_TOKEN_PATH),
        contract: int = CONTRACT_VERSION,
    ) -> None:
        self._contract = contract
        self._owner = owner
        self._stage = stage
        self._token_path = token_path
        self._changed = threading.Condition()
        self._newest: Progress | None = None
        self._closing = False
        self._sequence = 0
        self._warned_at: float | None = None
        self._thread: threading.Thread | None = None
        named = os.environ.get(PROGRESS_ENV)
        self._file = Path(named) if named else None
        if target is not None:
            self._thread = threading.Thread(target=self._run, args=(target,), name="reporter", daemon=True)
            self._thread.start()

    def progress(self, progress: Progress) -> None:
        """Queue the newest progress. Returns at once."""
        if self._file is not None:
            self._write(self._file, progress)
        if self._thread is None:
            return
        with self._changed:
            self._newest = progress
            self._changed.notify()

    def _write(self, path: Path, progress: Progress) -> None:
        """Replace the file, so that a reader never sees a part of it."""
        text = progress.to_json()
        partial = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            partial.write_text(text, encoding="utf-8")
            partial.replace(path)
        except OSError as error:
            self._warn(str(path), str(error))

    def close(self, timeout_seconds: float) -> None:
        """Wait up to `timeout_seconds` for the newest progress to arrive. Then the process may exit."""
        if self._thread is None:
            return
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout_seconds)

    def _run(self, target: ReportTarget) -> None:
        url = target.url.rstrip("/") + REPORT_PATH
        retry_seconds = FIRST_RETRY_SECONDS
        try:
            context = ssl.create_default_context(cadata=target.ca_pem)
        except ssl.SSLError as error:
            logger.warning("report.caPem is not a certificate (%s); progress is not reported", error)
            return
        # Proxy settings of the cluster are for external traffic, not for the operator.
        with httpx.Client(verify=context, timeout=REQUEST_TIMEOUT_SECONDS, trust_env=False) as client:
            while (progress := self._next()) is not None:
                problem = self._send(client, url, progress)
                if problem is None:
                    retry_seconds = FIRST_RETRY_SECONDS
                    self._pause(REPORT_INTERVAL_SECONDS)
                    continue
                self._warn(url, problem)
                with self._changed:
                    if self._newest is None:
                        self._newest = progress
                self._pause(retry_seconds)
                retry_seconds = min(2 * retry_seconds, MAX_RETRY_SECONDS)

    def _next(self) -> Progress | None:
        """Wait for the newest progress and return it, or None after the last one."""
        with self._changed:
            self._changed.wait_for(lambda: self._newest is not None or self._closing)
            progress, self._newest = self._newest, None
            return progress

    def _pause(self, seconds: float) -> None:
        """Wait, but at most a second when closing, to use the remaining time for attempts."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._closing, seconds):
                return
        time.sleep(min(seconds, FIRST_RETRY_SECONDS) if self._newest is not None else 0)

    def _send(self, client: httpx.Client, url: str, progress: Progress) -> str | None:
        """Send a report. Returns the problem, or None if the report needs no retry."""
        # Increases across the pods of a run, so that a new pod's reports are newer than the old pod's.
        self._sequence = max(self._sequence + 1, time.time_ns() // 1_000_000)
        report = Report(
            contract=self._contract,
            owner=self._owner,
            stage=self._stage,
            sequence=self._sequence,
            progress=progress,
        )
        try:
            token = self._token_path.read_text().strip()
            SCRUBBER.add(token)
            answer = client.post(
                url,
                content=report.to_json(),
                headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
            )
        except (OSError, httpx.HTTPError, httpx.InvalidURL) as error:
            return f"{type(error).__name__}: {error}"
        if answer.is_success:
            return None
        problem = f"status {answer.status_code}: {one_line(SCRUBBER.scrub(answer.text[:2000]), 200)}"
        if answer.status_code in REJECTED_STATUS_CODES:
            logger.warning("the operator rejected a progress report: %s", problem)
            return None
        return problem

    def _warn(self, url: str, problem: str) -> None:
        now = time.monotonic()
        if self._warned_at is None or now - self._warned_at >= WARNING_INTERVAL_SECONDS:
            self._warned_at = now
            logger.warning(
                "progress does not reach the operator at %s (%s); the stage continues, and the report is"
                " retried",
                url,
                problem,
            )


REPORT_SECONDS: Final = 1.0
LOG_SECONDS: Final = 5.0


class Interval:
    """Limits an action to once per number of seconds."""

    def __init__(self, seconds: float, *, due: bool = False) -> None:
        """`due`: whether the first interval has already passed."""
        self._seconds = seconds
        self._began = float("-inf") if due else time.monotonic()

    def passed(self) -> bool:
        """Return whether the interval has passed, and start the next one."""
        now = time.monotonic()
        if now - self._began < self._seconds:
            return False
        self._began = now
        return True

    def begin(self) -> None:
        """Start the interval now."""
        self._began = time.monotonic()


class ProgressMeter:
    """Counts work. Reports the count to the operator every second, and a line to the log every 5 seconds.

    Args:
        total: total work; an estimate if `add` gets better ones.
        line: builds the log line from the work done and the total.
        reporter: sends the count to the operator; None for the log only.
        unit: work per step that the operator gets.
    """

    def __init__(
        self,
        total: int,
        line: Callable[[int, int], str],
        reporter: Reporter | None = None,
        *,
        unit: int = 1,
    ) -> None:
        self._total = total
        self._line = line
        self._reporter = reporter
        self._unit = unit
        self._done = 0
        self._report = Interval(REPORT_SECONDS, due=True)
        self._log = Interval(LOG_SECONDS)

    def restart_log(self) -> None:
        """Restart the interval of log lines, after another line about this work."""
        self._log.begin()

    def add(self, work: int = 1, total: int | None = None) -> None:
        """Count work done. `total` is a better estimate of the total."""
        self._done += work
        if total is not None:
            self._total = total
        if self._report.passed() or (total is None and self._done >= self._total):
            self.report()
        if self._log.passed():
            logger.info("%s", self._line(self._done, self._total))

    def end(self) -> None:
        """Set the total to the work done, and report it."""
        self._total = self._done
        self.report()

    def report(self) -> None:
        """Report the count to the operator now."""
        if self._reporter is not None:
            self._reporter.progress(
                Progress(step=self._done // self._unit, total_steps=self._total // self._unit)
            )
