# SPDX-License-Identifier: Apache-2.0
"""The program of the process that calls a user's function. Its arguments are function and limits.

Reads a JSON object per line: the source, then rows with answers. Writes one per line: value or error.
The function's output goes to standard error. Imports nothing that takes time, and nothing of the trainer but
its filter.
"""

import json
import math
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

from finetune_trainer.evaluate.custom import syscallfilter

BLOCKED_EVENTS = ("socket.", "subprocess.", "os.exec", "os.fork", "os.posix_spawn", "os.system")
SOURCE_NAME = "<custom metric>"
MAX_ERROR_CHARACTERS = 200
"""The text may quote rows, and becomes part of the run's status."""
ADVICE = "a custom metric has no network and cannot start programs: compute the value from row and answer"


def main() -> None:
    """Call the function for each line until the input ends."""
    function, cpu_seconds, memory_bytes = sys.argv[1:]
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        _limit(int(cpu_seconds), int(memory_bytes))
        syscallfilter.end_with_parent(signal.SIGKILL)
        syscallfilter.confine()
        sys.addaudithook(_refuse)
        metric = _load(json.loads(sys.stdin.readline())["source"], function)
    except BaseException as error:  # noqa: BLE001 - whatever the user's code raises is reported
        _reply(replies, {"error": _describe(error)})
        return
    _reply(replies, {"ready": True})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply: dict[str, Any] = {"value": _number(metric(request["row"], request["answer"]), function)}
        except BaseException as error:  # noqa: BLE001
            reply = {"error": _describe(error)}
        _reply(replies, reply)


def _limit(cpu_seconds: int, memory_bytes: int) -> None:
    for which, value in (
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(which, (value, value))


def _refuse(event: str, _arguments: tuple[Any, ...]) -> None:
    """Explain what the kernel would refuse without a reason."""
    if event.startswith(BLOCKED_EVENTS):
        raise PermissionError(f"{event.partition('.')[0]} is refused: {ADVICE}")


def _load(source: str, function: str) -> Callable[[dict[str, Any], str], Any]:
    namespace: dict[str, Any] = {"__name__": "custom_metric"}
    exec(compile(source, SOURCE_NAME, "exec"), namespace)  # noqa: S102 - this is its purpose
    found = namespace.get(function)
    if not callable(found):
        raise TypeError(f"there is no function {function}(row, answer)")
    metric: Callable[[dict[str, Any], str], Any] = found
    return metric


def _number(value: Any, function: str) -> float:
    try:
        number = math.nan if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise TypeError(f"{function} returned {value!r:.80}, which is not a finite number")
    return number


def _describe(error: BaseException) -> str:
    """Type and text of an error, with the last line of the source that it passed."""
    traceback.print_exception(error)
    text = " ".join(f"{type(error).__name__}: {error}".split())
    if len(text) > MAX_ERROR_CHARACTERS:
        text = f"{text[:MAX_ERROR_CHARACTERS]}…"
    if isinstance(error, MemoryError):
        text = "MemoryError: the memory limit is reached"
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == SOURCE_NAME
    ]
    return f"{text} (line {lines[-1]})" if lines else text


def _reply(replies: Any, reply: dict[str, Any]) -> None:
    replies.write(json.dumps(reply) + "\n")
    replies.flush()


if __name__ == "__main__":
    main()
