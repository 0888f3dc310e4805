# SPDX-License-Identifier: Apache-2.0
"""The score stage: calls the user's functions for all answers that an evaluation has generated.

Each function has a process of its own, with limits of time and memory.
"""

import json
import logging
import math
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self, cast

import finetune_trainer
from finetune_trainer.contract.configs import ScoreConfig
from finetune_trainer.contract.metrics import Metric
from finetune_trainer.contract.own_metrics import CustomMetric, CustomMetricSource
from finetune_trainer.contract.results import ScoreResult
from finetune_trainer.contract.vocabulary import FailureReason, SplitName, Subject
from finetune_trainer.evaluate.custom.syscallfilter import forbid_inspection
from finetune_trainer.evaluate.estimates import RowValues, compute_evidence
from finetune_trainer.evaluate.measurement_log import FILE
from finetune_trainer.rows import SPLIT_FILES
from finetune_trainer.runtime.logs import one_line
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.stage.own_metrics import MetricSource, check_metric, metric_failure
from finetune_trainer.statistics.bootstrap import Groups

CPU_SECONDS: Final = 1800
"""CPU time of a function, over all rows."""
ROW_SECONDS: Final = 10.0
"""Time of one call, and of the load of the source."""
LOAD_SECONDS: Final = 60.0
STAGE_SECONDS: Final = 7200.0
"""Time of all calls of all functions. Time without CPU counts too."""
MEMORY_BYTES: Final = 2 << 30
"""Address space of the process."""
CHUNK_BYTES: Final = 1 << 16
MAX_REPLY_BYTES: Final = 1 << 16
CHILD: Final = "finetune_trainer.evaluate.custom.child"
ENVIRONMENT: Final = {
    "LANG": "C.UTF-8",
    # In the image, the trainer is not an installed package.
    "PYTHONPATH": str(Path(finetune_trainer.__file__).parents[1]),
    # Libraries for numbers reserve address space for each thread.
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}
"""The whole environment of the process."""


WRONG_REPLY: Final = "its process wrote something else than a value: print instead of writing to files"
MAX_LOGGED_LINES: Final = 200
MAX_LINE_LENGTH: Final = 500
MAX_LINE_BYTES: Final = 4 * MAX_LINE_LENGTH
"""A longer line of output counts as several, so that an endless one does not fill the memory."""

logger = logging.getLogger(__name__)


class MetricError(Exception):
    """The function did not return a value. The text says why, and is for the user."""


class MetricProcess:
    """A process with one function of a user. As a context manager it is killed after the block."""

    def __init__(
        self,
        source: str,
        function: str,
        *,
        row_seconds: float = ROW_SECONDS,
        all_seconds: float = STAGE_SECONDS,
        cpu_seconds: int = CPU_SECONDS,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        """Start the process. `source` is Python, and has a function with this name.

        It is killed after `all_seconds`, which are left of `STAGE_SECONDS`.
        """
        self._source = source
        self._row_seconds = row_seconds
        self._cpu_seconds = cpu_seconds
        # The environment and the memory of this process have what the function must not know.
        forbid_inspection()
        self._process = subprocess.Popen(
            [
                sys.executable,
                *("-P", "-s", "-B", "-m", CHILD),
                *(function, str(cpu_seconds), str(memory_bytes)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Through a pipe, because the process may not write to files.
            stderr=subprocess.PIPE,
            env=ENVIRONMENT,
            cwd="/",
            start_new_session=True,
        )
        requests, replies, output = self._process.stdin, self._process.stdout, self._process.stderr
        if requests is None or replies is None or output is None:
            raise RuntimeError("the process has no pipes")
        self._requests, self._replies = requests, replies
        self._logging = threading.Thread(target=_log, args=(output,), name="output", daemon=True)
        self._logging.start()
        self._received = b""
        self._is_late = False
        self._timer = threading.Timer(all_seconds, self._end_late)
        self._timer.daemon = True
        self._timer.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        self._process.kill()
        self._process.wait()
        with suppress(BrokenPipeError):
            self._requests.close()
        self._replies.close()
        self._logging.join()

    def load(self) -> None:
        """Execute the source, which defines the function. Raises MetricError."""
        self._request({"source": self._source}, LOAD_SECONDS, "loading the source")

    def value(self, row: Mapping[str, Any], answer: str) -> float:
        """Call the function. Raises MetricError."""
        reply = self._request({"row": row, "answer": answer}, self._row_seconds, "the call")
        value = reply.get("value")
        if not isinstance(value, float) or not math.isfinite(value):
            raise MetricError(WRONG_REPLY)
        return value

    def _request(self, request: dict[str, Any], seconds: float, what: str) -> dict[str, Any]:
        try:
            self._requests.write(json.dumps(request).encode() + b"\n")
            self._requests.flush()
        except OSError as error:
            raise MetricError(self._how_it_ended()) from error
        return self._reply(seconds, what)

    def _reply(self, seconds: float, what: str) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while b"\n" not in self._received:
            remaining = deadline - time.monotonic()
            if remaining <= 0 or not select.select([self._replies], [], [], remaining)[0]:
                raise MetricError(f"{what} took longer than {seconds:g} s")
            part = os.read(self._replies.fileno(), CHUNK_BYTES)
            if not part:
                raise MetricError(self._how_it_ended())
            self._received += part
            if len(self._received) > MAX_REPLY_BYTES:
                raise MetricError(WRONG_REPLY)
        line, _, self._received = self._received.partition(b"\n")
        try:
            reply = json.loads(line)
        except ValueError as error:
            raise MetricError(WRONG_REPLY) from error
        if not isinstance(reply, dict):
            raise MetricError(WRONG_REPLY)
        if "error" in reply:
            raise MetricError(str(reply["error"]))
        return reply

    def _end_late(self) -> None:
        self._is_late = True
        self._process.kill()

    def _how_it_ended(self) -> str:
        code = self._process.wait()
        if self._is_late:
            return f"all calls of all metrics together may take {STAGE_SECONDS:g} s"
        if code in (-signal.SIGXCPU, -signal.SIGKILL):
            return f"its process was killed: all calls together may take {self._cpu_seconds} s of CPU time"
        return f"its process ended with exit code {code}"


def _log(output: IO[bytes]) -> None:
    """Log the first lines of what a function writes, and drop the rest."""
    with output:
        for number, line in enumerate(iter(partial(output.readline, MAX_LINE_BYTES), b"")):
            if number < MAX_LOGGED_LINES:
                logger.info("output: %s", one_line(line.decode(errors="replace"), MAX_LINE_LENGTH))


Answers = dict[Subject, dict[int, str]]
"""The answers of each subject, by the number of their row."""

Answered = dict[Subject, dict[int, float]]
"""The values of a metric, by subject and row."""


def run(config: ScoreConfig) -> ScoreResult:
    """Call each function for all answers. Raises StageFailure (CUSTOM_METRIC_FAILED, ARTIFACT_NOT_FOUND)."""
    rows = _lines(Path(config.dataset_path) / SPLIT_FILES[config.split])
    answers = _answers(_lines(Path(config.predictions_path) / FILE))
    values: dict[tuple[Metric, Subject], dict[int, float]] = {}
    end = time.monotonic() + STAGE_SECONDS
    sources: list[CustomMetricSource] = []
    for metric in config.metrics:
        source = check_metric(metric)
        sources.append(CustomMetricSource(name=metric.name, digest=source.digest))
        of_subjects = _values(metric, source, rows, answers, end, split=config.split)
        values |= {(metric.metric, subject): found for subject, found in of_subjects.items()}
    groups = None
    if config.group_by is not None:
        groups = Groups.of(config.group_by, (row.get("columns", {}) for row in rows))
    measured = RowValues(values, groups)
    return ScoreResult(
        scores=tuple(measured.scores()),
        evidence=tuple(compute_evidence(config.gates, measured, measured.subjects)),
        sources=tuple(sources),
    )


def _values(
    metric: CustomMetric,
    source: MetricSource,
    rows: Sequence[dict[str, Any]],
    answers: Answers,
    end: float,
    *,
    split: SplitName,
) -> Answered:
    seconds = max(end - time.monotonic(), 0)
    with MetricProcess(source.text, metric.function, all_seconds=seconds) as process:
        try:
            process.load()
        except MetricError as error:
            raise metric_failure(metric, f"its source does not load: {error}") from error
        measured: Answered = {}
        for subject, of_subject in answers.items():
            values: dict[int, float] = {}
            for number, answer in of_subject.items():
                try:
                    values[number] = process.value(rows[number - 1], answer)
                except MetricError as error:
                    raise metric_failure(
                        metric, f"row {number} of the {split} split, answer of {subject}: {error}"
                    ) from error
            logger.info("%s: %d answers of %s", metric.metric, len(values), subject)
            measured[subject] = values
    return measured


def _answers(lines: Sequence[dict[str, Any]]) -> Answers:
    """The generated answers of a file of predictions, whose first line is a header."""
    answers: Answers = {}
    for line in lines:
        if line.get("text") is not None:
            answers.setdefault(cast("Subject", line["subject"]), {})[line["row"]] = line["text"]
    return answers


def _lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of lines. Raises StageFailure (ARTIFACT_NOT_FOUND)."""
    try:
        return [json.loads(line) for line in path.read_bytes().splitlines()]
    except OSError as error:
        raise StageFailure(
            FailureReason.ARTIFACT_NOT_FOUND,
            f"{path.name} cannot be read: {error.strerror}. The evaluation must have written it to the claim"
            " of the run's store",
        ) from error
