# SPDX-License-Identifier: Apache-2.0
"""Prepares batches of rows in this process or in worker processes, and returns them in order.

A batch does not depend on other batches, so several processes can work on the batches of a source. Each
record becomes a line, digests and findings by itself. Texts are cleaned as the recipe specifies, after the
row has its split.

A worker is a separate Python process. It is not forked: that is unsafe with threads, and not the default on
macOS. A worker ends if its parent is killed, because its standard input is then closed.
"""

import json
import pickle
import re
import subprocess
import sys
import unicodedata
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import islice
from queue import SimpleQueue
from types import TracebackType
from typing import IO, Final, Self

from finetune_trainer import canonical_json
from finetune_trainer.contract.dataset import Cleaning
from finetune_trainer.contract.vocabulary import SplitName
from finetune_trainer.data import split_files
from finetune_trainer.data.checks.scanner import Scanner
from finetune_trainer.data.reading import BatchReader, RowBatch
from finetune_trainer.data.recipe import Recipe
from finetune_trainer.data.row_index import RowIndex, completion_of
from finetune_trainer.data.row_problems import InvalidRecord, Issue, RowPosition
from finetune_trainer.data.split_files import split_of
from finetune_trainer.pod_limits import available_processors
from finetune_trainer.rows import SPLIT_FILES, Message, Row

SPACES: Final = re.compile(r"[ \t\u00a0\u2007\u202f]+")
"""Spaces, tabs and non-breaking spaces."""
LINE_END: Final = re.compile(r"[^\S\n]+(?=\n)")
EMPTY_LINES: Final = re.compile(r"\n{3,}")


def clean(row: Row, cleaning: Cleaning) -> Row:
    """Clean the content of every turn and the rejected answer; tool calls stay as they are.

    Returns the same object if nothing changes.
    """
    if not (cleaning.normalize_unicode or cleaning.normalize_whitespace):
        return row
    messages = tuple(_message(message, cleaning) for message in row.messages)
    rejected = None if row.rejected is None else _text(row.rejected, cleaning)
    if messages == row.messages and rejected == row.rejected:
        return row
    return replace(row, messages=messages, rejected=rejected)


def _message(message: Message, cleaning: Cleaning) -> Message:
    content = _text(message.content, cleaning)
    return message if content == message.content else replace(message, content=content)


def _text(text: str, cleaning: Cleaning) -> str:
    if cleaning.normalize_unicode:
        text = unicodedata.normalize("NFC", text)
    if cleaning.normalize_whitespace:
        text = SPACES.sub(" ", text)
        text = LINE_END.sub("", text)
        text = EMPTY_LINES.sub("\n\n", text)
        text = text.strip()
    return text


@dataclass(slots=True, kw_only=True)
class PreparedBatch:
    """Result of preparing one batch."""

    index: RowIndex
    """The valid rows, in the order of `lines`."""
    source: int
    """Number of the source, from 0."""
    bytes_read: int
    """Bytes read from all files on disk when the batch was complete."""
    lines: dict[SplitName, bytearray] = field(
        default_factory=lambda: {name: bytearray() for name in SPLIT_FILES}
    )
    """Lines per split file."""
    findings: list[tuple[RowPosition, tuple[Issue, ...]]] = field(default_factory=list)
    """All issues, in the order of the records."""
    rows: int = 0
    """Number of records read, including invalid ones."""
    invalid: int = 0
    broken: int = 0
    """Number of files that could not be read to their end."""
    redacted: int = 0
    sensitive: set[str] = field(default_factory=set)
    """Secrets and personal data that training rows keep. They never leave memory."""
    combined: int = 0
    """Number of answers that combine several labels."""
    kept_columns: set[str] = field(default_factory=set)
    """Columns of which a value was kept."""
    unused: tuple[str, ...] = ()
    """Fields of the records that are not used."""
    known: frozenset[str] = frozenset()
    """Fields of the records that are used."""


class Preparer:
    """Prepares batches as the recipe of their source specifies."""

    def __init__(self, recipes: Sequence[Recipe]) -> None:
        """Raises ValueError for an invalid template."""
        # Sources differ only in how their records are read.
        self._recipe = recipes[0]
        self._readers = [BatchReader(recipe) for recipe in recipes]
        self._names = [recipe.names for recipe in recipes]
        self._scanner = Scanner(self._recipe.checks)

    def prepare(self, batch: RowBatch) -> PreparedBatch:
        """Read, split, clean and scan the rows of a batch."""
        index = RowIndex()
        done = PreparedBatch(index=index, source=batch.source, bytes_read=batch.bytes_read)
        reader = self._readers[batch.source]
        names = self._names[batch.source]
        for item in reader.read(batch):
            if isinstance(item, InvalidRecord):
                done.findings.append((item.position, item.issues))
                done.broken += item.ends_file
                done.invalid += not item.ends_file
                done.rows += not item.ends_file
                continue
            done.rows += 1
            # The split depends on the raw row, so cleaning never moves a row.
            split = split_of(item.raw, self._recipe.division)
            cleaned = clean(item.raw.row, self._recipe.cleaning)
            row, issues = self._scanner.scan(cleaned, names)
            if issues:
                done.findings.append((item.position, issues))
                if any(issue.severity == "error" for issue in issues):
                    done.invalid += 1
                    continue
            done.redacted += row is not cleaned
            done.kept_columns.update(name for name, _ in row.columns)
            if issues and split == "train":
                done.sensitive |= self._scanner.values_of(row)
            done.lines[split] += split_files.line_of(row)
            shown = completion_of(self._masked(row.messages[-1])) if issues else None
            index.add(row, split, batch.file, item.position.record or 0, shown=shown, group=item.raw.group)
        if reader.form is not None:
            done.combined = reader.form.combined
            done.unused, done.known = tuple(reader.form.unused), reader.form.known
        return done

    def _masked(self, turn: Message) -> Message:
        """The turn with placeholders for all findings."""
        calls = turn.tool_calls
        if calls is not None:
            # The texts in the JSON, in which characters can be escaped, are masked one by one.
            calls = canonical_json.text(self._scanner.masked_json(json.loads(calls)))
        return replace(turn, content=self._scanner.masked(turn.content), tool_calls=calls)


WORKER: Final = "finetune_trainer.data.row_worker"
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
