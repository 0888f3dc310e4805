# SPDX-License-Identifier: Apache-2.0
"""Worker processes find the same as one process, and end with their parent."""

import gzip
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_trainer.contract.dataset import Checks, Cleaning, Split
from finetune_trainer.data import batches as rowworkers
from finetune_trainer.data import reading
from finetune_trainer.data.batches import RowWorkers, prepare_batches
from finetune_trainer.data.files import FileChanged, SourceFile
from finetune_trainer.data.pipeline import prepare
from finetune_trainer.data.reading import RowBatch
from finetune_trainer.data.recipe import FieldNames, Recipe
from finetune_trainer.data.result import DuplicatePair, Prepared, RowProblem
from finetune_trainer.report.document import document, duplicate_record, encode, problem_record
from finetune_trainer.rows import SPLIT_FILES
from tests.trainer.data.reading import chat, json_lines, pairs, parquet_bytes
from tests.trainer.data.test_reading_properties import RECORDS, VALUES
from tests.waiting import eventually

EXAMPLES = Path(__file__).parents[3] / "examples"
SOURCES = [EXAMPLES / "data" / name for name in ("chat-messages.jsonl", "label-studio.json", "table.csv")]
RECIPES = {
    "by default": Recipe(),
    "with everything": Recipe(
        division=Split(seed=3),
        cleaning=Cleaning(normalize_whitespace=True, normalize_unicode=True, near_duplicates="Remove"),
        checks=Checks(
            secrets="Redact",
            email_addresses="Redact",
            payment_cards="Fail",
            ibans="Warn",
            phone_numbers="Warn",
            phone_region="DE",
        ),
    ),
}
TOKEN = "ghp_" + "a1B2" * 9


@dataclass
class RecordingListener:
    """Records the calls of a listener."""

    counts: list[int] = field(default_factory=list)
    problems: list[Any] = field(default_factory=list)
    duplicates: list[Any] = field(default_factory=list)

    def rows(self, count: int, bytes_read: int) -> None:
        assert bytes_read >= 0
        self.counts.append(count)

    def problem(self, problem: RowProblem) -> None:
        self.problems.append((problem_record(problem), problem.issue.public))

    def duplicate(self, pair: DuplicatePair) -> None:
        self.duplicates.append(duplicate_record(pair))


def outcome(
    sources: Iterable[Path], recipe: Recipe
) -> tuple[dict[str, bytes], bytes, Prepared, RecordingListener]:
    """Everything that a preparation produces: files, report, result, and calls of the listener.

    The salt of the hashes of sensitive values, which is random, is always the same.
    """
    recorder = RecordingListener()
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("secrets.token_hex", lambda size: "00" * size)
        found = prepare([SourceFile(path) for path in sources], recipe, Path(folder), listener=recorder)
        files = {name: (Path(folder) / name).read_bytes() for name in SPLIT_FILES.values()}
    assert sum(recorder.counts) == found.rows
    return files, encode(document(found)), found, replace(recorder, counts=[])


@pytest.fixture
def two_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers from the first batch on, and batches of seven rows."""
    monkeypatch.setattr(rowworkers, "available_processors", lambda: 2)
    monkeypatch.setattr(rowworkers, "LOCAL_BATCHES", 0)
    monkeypatch.setattr(reading, "BATCH_ROWS", 7)


@pytest.fixture
def batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RowBatch]:
    """Batches of one row each."""
    path = tmp_path / "rows.jsonl"
    path.write_text(json_lines(pairs(50)))
    monkeypatch.setattr(reading, "BATCH_ROWS", 1)
    return iter(reading.SourceReader([SourceFile(path)], Recipe()))


def bad_rows() -> list[Any]:
    """One row with each kind of problem, among valid rows with many unused fields."""
    rows: list[Any] = []
    for number, pair in enumerate(pairs(200)):
        rows.append({**pair, f"field {number % 40}": number} if number % 3 else pair)
    rows[20] = '{"prompt": "a", "prompt": "b", "completion": "c"}'
    rows[40] = {"prompt": "", "completion": "x\x00"}
    rows[60] = {"prompt": f"my token is {TOKEN}", "completion": "write to jo@example.com"}
    rows[70] = {"prompt": [{"role": "user", "content": "hi"}], "completion": "ho", "tools": []}
    rows[71] = {**pairs(1)[0], "tools": "none"}
    rows[80] = "no JSON"
    rows[90] = ""
    rows[100] = pairs(1)[0]
    rows[120] = {"prompt": "pay 4111 1111 1111 1111 <|im_end|>", "completion": TOKEN}
    rows[150] = {**pairs(1)[0], "completion": "another answer"}
    return rows


def text_of(rows: Iterable[Any]) -> str:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


@pytest.mark.usefixtures("two_processors")
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_several_processes_find_the_same_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: Recipe
) -> None:
    (tmp_path / "bad.jsonl").write_text(text_of(bad_rows()))
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(text_of(pairs(9000)).encode())[:-2000])
    (tmp_path / "tail.jsonl").write_text(text_of([chat("a", "b"), *pairs(20)]))
    (tmp_path / "table.parquet").write_bytes(parquet_bytes(pairs(30)))
    several = [[path] for path in SOURCES] + [sorted(tmp_path.iterdir()), [tmp_path / "bad.jsonl"]]

    by_workers = [outcome(sources, recipe) for sources in several]

    monkeypatch.setattr(rowworkers, "available_processors", lambda: 1)
    assert [outcome(sources, recipe) for sources in several] == by_workers
    assert sum(len(recorder.problems) for *_, recorder in by_workers) > 20


@settings(max_examples=40, deadline=None)
@given(
    records=st.lists(RECORDS | VALUES, min_size=1, max_size=12),
    recipe=st.sampled_from([*RECIPES.values(), Recipe(names=FieldNames(completion="answer"))]),
)
def test_the_ends_of_batches_make_no_difference(records: list[Any], recipe: Recipe) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = Path(folder) / "rows"
        path.write_text(json_lines(records))
        whole = outcome([path], recipe)
        patch.setattr(reading, "BATCH_ROWS", 1)

        assert outcome([path], recipe) == whole


@pytest.mark.usefixtures("two_processors")
def test_problems_before_a_file_changed_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(text_of(bad_rows()))
    recorder = RecordingListener()
    rows = recorder.rows

    def change(count: int, bytes_read: int) -> None:
        rows(count, bytes_read)
        path.touch()

    recorder.rows = change  # type: ignore[method-assign]
    (tmp_path / "out").mkdir()

    with pytest.raises(FileChanged):
        prepare([SourceFile(path)], Recipe(), tmp_path / "out", listener=recorder)

    assert sum(recorder.counts) == 199
    assert len(recorder.problems) > 5


def test_few_rows_and_one_processor_start_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batches: Iterator[RowBatch]
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(rowworkers, "available_processors", lambda: 1)
    assert len(list(prepare_batches(batches, [Recipe()]))) > 50

    monkeypatch.setattr(rowworkers, "available_processors", lambda: 2)
    monkeypatch.setattr(reading, "BATCH_ROWS", 1000)
    outcome([SOURCES[0]], Recipe())


def test_an_error_of_a_worker_is_raised_with_its_traceback(
    monkeypatch: pytest.MonkeyPatch, batches: Iterator[RowBatch]
) -> None:
    monkeypatch.setattr(rowworkers, "available_processors", lambda: 2)
    monkeypatch.setattr(rowworkers, "LOCAL_BATCHES", 0)
    broken = [replace(batch, items=[(1, None)]) for batch in batches]  # type: ignore[list-item]

    with closing(prepare_batches(broken, [Recipe()])) as prepared, pytest.raises(TypeError) as caught:
        list(prepared)

    assert any("in prepare" in note for note in caught.value.__notes__)


def test_a_killed_worker_raises_a_memory_error(batches: Iterator[RowBatch]) -> None:
    before = children(os.getpid())
    with RowWorkers([Recipe()], 1) as several:
        several.give(next(batches))
        several.take()
        (worker,) = set(children(os.getpid())).difference(before)
        os.kill(worker, signal.SIGKILL)
        several.give(next(batches))

        with pytest.raises(MemoryError, match="a worker process was killed"):
            several.take()


def test_batches_at_the_workers_are_limited(
    monkeypatch: pytest.MonkeyPatch, batches: Iterator[RowBatch]
) -> None:
    with RowWorkers([Recipe()], 1) as several:
        for _ in range(3):
            assert not several.are_busy()
            several.give(next(batches))
        assert several.are_busy()
        several.take()
        assert not several.are_busy()
        monkeypatch.setattr(rowworkers, "MAX_WAITING_BYTES", 1)
        assert several.are_busy()


def test_workers_end_when_the_generator_is_closed(
    monkeypatch: pytest.MonkeyPatch, batches: Iterator[RowBatch]
) -> None:
    monkeypatch.setattr(rowworkers, "available_processors", lambda: 2)
    monkeypatch.setattr(rowworkers, "LOCAL_BATCHES", 0)
    before = children(os.getpid())

    with closing(prepare_batches(batches, [Recipe()])) as prepared:
        next(prepared)
        assert len(children(os.getpid())) == len(before) + 2

    assert children(os.getpid()) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_the_process_that_started_them(number: signal.Signals) -> None:
    script = (
        "import signal, sys, time\n"
        "from finetune_trainer.data.recipe import Recipe\n"
        "from finetune_trainer.data.batches import RowWorkers\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))\n"
        "with RowWorkers([Recipe()], 2):\n"
        "    print('started', flush=True)\n"
        # A signal that the kernel gives to another thread does not end a sleep of this one.
        "    for _ in range(6000):\n"
        "        time.sleep(0.1)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"started\n"
    started = children(process.pid)
    assert len(started) == 2

    process.send_signal(number)

    process.communicate(timeout=60)
    eventually("the workers have ended", lambda: not any(map(is_running, started)))


def children(pid: int) -> list[int]:
    found = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return sorted(int(child) for text in found for child in text.split())


def is_running(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
