# SPDX-License-Identifier: Apache-2.0
"""Sources of the user's metrics and tasks, which a pod mounts from ConfigMaps.

The source of a metric is checked for its digest and its function. Nothing of it is executed. The tasks of
general ability that a run evaluates are built from the mounted files.
"""

import ast
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from finetune_trainer.contract.own_metrics import (
    CustomMetric,
    CustomMetricSource,
    EvaluationTask,
    EvaluationTaskSource,
)
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason
from finetune_trainer.runtime.termination import StageFailure

if TYPE_CHECKING:
    from finetune_trainer.scoring.tasks.harness import HarnessTask


MAX_SOURCE_BYTES: Final = 256 * 1024
"""A ConfigMap holds 1 MiB."""
ARGUMENTS: Final = 2


@dataclass(frozen=True)
class MetricSource:
    """A checked source. The file may change, so that its text is read once."""

    text: str
    digest: str
    """`sha256:` and 64 hexadecimal digits."""


def check_metric(metric: CustomMetric) -> MetricSource:
    """The source of a metric.

    Raises StageFailure (CUSTOM_METRIC_FAILED) if it cannot be used, or has changed since the run started.
    """
    try:
        source = check_source(Path(metric.path), metric.function)
    except SourceError as error:
        raise metric_failure(metric, f"the source in its ConfigMap: {error}") from error
    if metric.digest not in (None, source.digest):
        raise metric_failure(
            metric,
            f"the source has changed since the run started: it was {metric.digest} and is {source.digest}."
            " Restore it, or create a new run",
        )
    return source


def metric_sources(metrics: Sequence[CustomMetric]) -> tuple[CustomMetricSource, ...]:
    """What a result records of the metrics. Raises StageFailure as `check_metric`."""
    return tuple(CustomMetricSource(name=each.name, digest=check_metric(each).digest) for each in metrics)


def metric_failure(metric: CustomMetric, problem: str) -> StageFailure:
    """The failure of a metric; `problem` is a clause."""
    return StageFailure(
        FailureReason.CUSTOM_METRIC_FAILED,
        f"evaluation.customMetrics: {metric.name}: {problem}",
        ExitCode.BAD_DATA,
    )


class SourceError(Exception):
    """The source cannot be used. The text says why, and is for the user."""


def check_source(path: Path, function: str) -> MetricSource:
    """The source in a file, which has `function(row, answer)`. Raises SourceError."""
    content = _read(path)
    try:
        text = content.decode()
        module = ast.parse(text)
    except (SyntaxError, ValueError) as error:
        raise SourceError(f"it is not Python: {error}") from error
    found = next(
        (
            node
            for node in module.body
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == function
        ),
        None,
    )
    if found is None:
        raise SourceError(f"it has no function {function} at its top level")
    if isinstance(found, ast.AsyncFunctionDef):
        raise SourceError(f"{function} is async; write def {function}(row, answer)")
    arguments = found.args
    positional = [*arguments.posonlyargs, *arguments.args]
    required = len(positional) - len(arguments.defaults)
    if required > ARGUMENTS or (len(positional) < ARGUMENTS and arguments.vararg is None):
        raise SourceError(f"{function} must take two arguments: def {function}(row, answer)")
    return MetricSource(text, f"sha256:{hashlib.sha256(content).hexdigest()}")


def _read(path: Path) -> bytes:
    """The content of a source. Raises SourceError."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SourceError(f"it cannot be read: {error.strerror}") from error
    if len(content) > MAX_SOURCE_BYTES:
        raise SourceError(f"it has {len(content)} bytes, more than {MAX_SOURCE_BYTES}")
    return content


def open_tasks(tasks: Sequence[EvaluationTask]) -> "list[HarnessTask]":
    """The tasks with their rows and prompts.

    Raises StageFailure (INVALID_CONFIG) for a task that cannot be used, and for one whose files have changed
    since the run started.
    """
    return [_open(task) for task in tasks]


def task_sources(
    tasks: Sequence[EvaluationTask], opened: "Sequence[HarnessTask]"
) -> tuple[EvaluationTaskSource, ...]:
    """What a result records of the tasks that `open_tasks` has opened."""
    return tuple(
        EvaluationTaskSource(name=wanted.name, digest=task.source.digest, rows=task.rows)
        for wanted, task in zip(tasks, opened, strict=True)
    )


def _open(wanted: EvaluationTask) -> "HarnessTask":
    # The library takes a second to import, and most runs have no tasks.
    from finetune_trainer.scoring.tasks.harness import HarnessTask
    from finetune_trainer.scoring.tasks.task_files import TaskFileError, read_source

    try:
        source = read_source(Path(wanted.folder), wanted.file)
        task = HarnessTask(source, wanted)
    except TaskFileError as error:
        raise _failure(wanted, str(error)) from error
    if wanted.digest not in (None, source.digest):
        raise _failure(
            wanted,
            f"its files have changed since the run started: they were {wanted.digest} and are"
            f" {source.digest}. Restore them, or create a new run",
        )
    return task


def _failure(task: EvaluationTask, problem: str) -> StageFailure:
    return StageFailure(FailureReason.INVALID_CONFIG, f"evaluation.tasks: {task.name}: {problem}")
