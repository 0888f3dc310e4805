# SPDX-License-Identifier: Apache-2.0
"""Prepares batches of rows in worker processes, and returns them in order.

A worker is a separate Python process. It is not forked: that is unsafe with threads, and not the default on
macOS. A worker ends if its parent is killed, because its standard input is then closed.
"""

import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from queue import SimpleQueue
from types import TracebackType
from typing import IO, Final, Self

from finetune_trainer.data.batches import PreparedBatch, Preparer
from finetune_trainer.data.options import Recipe
from finetune_trainer.data.reading import RowBatch
from finetune_trainer.processors import available_processors

WORKER: Final = "finetune_trainer.data.rowworker"
LOCAL_BATCHES: Final = 8
"""Number of first batches, about 4 MiB, that this process prepares: most sources have no more, and workers
start slowly."""
MAX_WORKERS: Final = 4
"""Maximum number of workers. This process must keep up with them, and each takes about 30 MiB of memory."""
MAX_WAITING_BATCHES: Final = 2
"""Maximum number of queued batches per worker, so that no worker is idle."""
MAX_WAITING_BYTES: Final = 16 << 20
"""Maximum size of all queued batches. A larger batch is queued alone."""
SIGKILL_EXIT_CODE: Final = -9
"""Exit code after SIGKILL, with which the kernel ends a process that runs out of memory."""


def prepare_batches(
    batches: Iterable[RowBatch], recipes: Sequence[Recipe]
) -> Generator[PreparedBatch, None, None]:
    """Prepare batches, in several processes if there are many; the caller closes the generator at the end.

    `recipes` has one recipe per source.
    Raises ValueError for an invalid template, MemoryError, and what `batches` raises, after the results of
    all earlier batches.
    """
    batches = iter(batches)
    preparer = Preparer(recipes)
    for batch in islice(batches, LOCAL_BATCHES):
        yield preparer.prepare(batch)
    count = min(available_processors(), MAX_WORKERS)
    if count == 1:
        yield from map(preparer.prepare, batches)
        return
    failures: list[Exception] = []
    workers: RowWorkers | None = None
    with ExitStack() as stack:
        for batch in _until_failure(batches, failures):
            workers = workers or stack.enter_context(RowWorkers(recipes, count))
            workers.give(batch)
            while workers.are_busy():
                yield workers.take()
        while workers is not None and workers.have_work():
            yield workers.take()
    if failures:
        raise failures[0]


def _until_failure(batches: Iterator[RowBatch], failures: list[Exception]) -> Iterator[RowBatch]:
    """The batches up to an exception, which is appended to `failures`."""
    try:
        yield from batches
    except Exception as error:  # noqa: BLE001 - raised when all earlier batches are prepared
        failures.append(error)


class RowWorkers:
    """Worker processes that prepare batches. Call `give` and `take` from one thread only."""

    def __init__(self, recipes: Sequence[Recipe], count: int) -> None:
        self._recipes = recipes
        self._count = count
        self._processes: list[subprocess.Popen[bytes]] = []
        self._idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
        # Each thread uses one worker at a time, so that reads and writes of a pipe cannot deadlock.
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="worker")
        self._waiting: deque[tuple[Future[PreparedBatch], int]] = deque()
        self._waiting_bytes = 0

    def __enter__(self) -> Self:
        recipes = pickle.dumps(self._recipes)
        for _ in range(self._count):
            process = subprocess.Popen(
                # -P: import nothing from the working directory, where a user may have a json.py.
                [sys.executable, "-P", "-m", WORKER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                # Ctrl-C in a terminal reaches only this process, which ends its workers.
                start_new_session=True,
            )
            self._processes.append(process)
            _piped(process.stdin).write(recipes)
            self._idle.put(process)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._processes:
            process.kill()
        self._threads.shutdown()
        for process in self._processes:
            process.communicate()

    def have_work(self) -> bool:
        """Whether a batch was given and not taken."""
        return bool(self._waiting)

    def are_busy(self) -> bool:
        """Whether a batch must be taken before the next one is given."""
        is_full = self._waiting_bytes > MAX_WAITING_BYTES
        return self.have_work() and (is_full or len(self._waiting) > self._count * MAX_WAITING_BATCHES)

    def give(self, batch: RowBatch) -> None:
        """Queue a batch for the next free worker."""
        message = pickle.dumps(batch, pickle.HIGHEST_PROTOCOL)
        self._waiting.append((self._threads.submit(self._request, message), len(message)))
        self._waiting_bytes += len(message)

    def take(self) -> PreparedBatch:
        """The result of the oldest batch that was not taken. Raises MemoryError, and what a worker raised."""
        future, size = self._waiting.popleft()
        self._waiting_bytes -= size
        return future.result()

    def _request(self, message: bytes) -> PreparedBatch:
        process = self._idle.get()
        try:
            _piped(process.stdin).write(message)
            _piped(process.stdin).flush()
            found = pickle.load(_piped(process.stdout))  # noqa: S301 - from a process of our own
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            raise _worker_failure(process) from error
        finally:
            self._idle.put(process)
        if isinstance(found, Exception):
            raise found
        if not isinstance(found, PreparedBatch):
            raise TypeError(f"a worker process returned {type(found).__name__}")
        return found


def _piped(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise ValueError("a worker process has no pipe")
    return stream


def _worker_failure(process: subprocess.Popen[bytes]) -> Exception:
    """The reason why a worker does not respond."""
    code = process.wait()
    if code == SIGKILL_EXIT_CODE:
        return MemoryError("a worker process was killed")
    return RuntimeError(f"a worker process ended with exit code {code}")
