# SPDX-License-Identifier: Apache-2.0
"""A file arrives whole or not at all, wherever the connection breaks, and from where it stopped."""

import errno
import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_client.errors import OperationError, ProgramExit
from finetune_client.transfer import stored_files
from finetune_client.transfer.copying import Carrier, LocalFile, Patience, Wanted, receive, send
from finetune_client.transfer.files import BucketFiles, ConnectionLost, Files, ProcessFiles, server_command
from finetune_client.transfer.stored_files import CHUNK_BYTES, StoredFiles, StoredFilesError
from tests.unit.client.brokenfiles import BreakingFiles

SIZES = st.sampled_from((0, 1, 7, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES + 5))
BREAKS = st.lists(st.integers(0, 2 * CHUNK_BYTES + 5), max_size=4)


def content_of(size: int) -> bytes:
    return bytes(range(251)) * (size // 251) + bytes(range(size % 251))


def patient() -> Carrier:
    return Carrier(patience=Patience(pause=lambda _: None))


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    folder.mkdir()
    return folder


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(content_of(2 * CHUNK_BYTES + 5))
    return file


@contextmanager
def served(store: Path) -> Iterator[ProcessFiles]:
    """Files behind a process, as in a pod."""
    process = ProcessFiles([sys.executable, *server_command(str(store))[1:]])
    yield process
    process.close()


@pytest.fixture(params=["folder", "process"])
def folder_files(request: pytest.FixtureRequest, store: Path) -> Iterator[Files]:
    """Files of a folder, directly and through a process."""
    if request.param == "folder":
        yield StoredFiles(str(store))
        return
    with served(store) as process:
        yield process


@pytest.fixture(params=["folder", "process", "bucket"])
def files(request: pytest.FixtureRequest, store: Path) -> Iterator[Files]:
    """Files of a store of each kind."""
    if request.param == "folder":
        yield StoredFiles(str(store))
    elif request.param == "bucket":
        yield BucketFiles(fsspec.filesystem("memory"), str(store))
    else:
        with served(store) as process:
            yield process


@settings(max_examples=60, deadline=None)
@given(size=SIZES, breaks=BREAKS, answers_lost=st.booleans())
def test_an_upload_arrives_wherever_it_breaks(size: int, breaks: list[int], answers_lost: bool) -> None:
    with TemporaryDirectory() as folder:
        source = Path(folder, "rows.jsonl")
        source.write_bytes(content_of(size))
        store = Path(folder, "store")
        store.mkdir()
        files = BreakingFiles(str(store), breaks, answers_lost=answers_lost)
        arrived: list[int] = []
        file = LocalFile.of(source, "rows.jsonl")
        carrier = Carrier(arrived=arrived.append, patience=Patience(pause=lambda _: None))
        send(file, files, "part/rows.jsonl", carrier)
        assert sum(arrived) == size
        assert (store / "part/rows.jsonl").read_bytes() == content_of(size)
        assert files.carried <= size


@settings(max_examples=60, deadline=None)
@given(size=SIZES, breaks=BREAKS)
def test_a_download_arrives_wherever_it_breaks_and_is_never_partly_there(
    size: int, breaks: list[int]
) -> None:
    with TemporaryDirectory() as folder:
        store, target = Path(folder, "store"), Path(folder, "results", "adapter.bin")
        store.mkdir()
        (store / "adapter.bin").write_bytes(content_of(size))
        files = BreakingFiles(str(store), breaks)

        def is_absent(reason: str) -> None:
            assert not target.exists()

        carrier = Carrier(patience=Patience(pause=lambda _: None, on_lost=is_absent))
        wanted = Wanted("adapter.bin", target, size, sha256(content_of(size)))
        assert receive(wanted, files, carrier)
        assert target.read_bytes() == content_of(size)
        assert files.carried == size
        assert [file.name for file in target.parent.iterdir()] == ["adapter.bin"]


def test_files_go_to_a_store_of_each_kind_and_come_back(files: Files, rows: Path, tmp_path: Path) -> None:
    file = LocalFile.of(rows, "rows.jsonl")
    send(file, files, "uploads/.partial/1/rows.jsonl", patient())
    files.publish("uploads/.partial/1/rows.jsonl", "uploads/1/rows.jsonl")
    assert files.size("uploads/.partial/1/rows.jsonl") is None
    assert files.exists("uploads/1")
    assert files.size("uploads/1/rows.jsonl") == file.size
    target = tmp_path / "results" / "rows.jsonl"
    assert receive(Wanted("uploads/1/rows.jsonl", target, file.size), files, patient())
    assert target.read_bytes() == rows.read_bytes()
    with pytest.raises(StoredFilesError, match=r"uploads/1/rows\.jsonl exists"):
        files.publish("uploads/1/rows.jsonl", "uploads/1/rows.jsonl")


def test_what_a_store_does_not_have_is_an_error_and_not_an_empty_file(files: Files, tmp_path: Path) -> None:
    assert files.size("runs/1/report.html") is None
    with pytest.raises(StoredFilesError, match=r"runs/1/report\.html"):
        receive(Wanted("runs/1/report.html", tmp_path / "report.html", 4), files, patient())
    assert not (tmp_path / "report.html").exists()


def test_a_part_of_another_file_is_replaced(store: Path, rows: Path) -> None:
    (store / "part").write_bytes(b"not the beginning of the rows")
    send(LocalFile.of(rows, "rows.jsonl"), StoredFiles(str(store)), "part", patient())
    assert (store / "part").read_bytes() == rows.read_bytes()


def test_a_download_continues_its_own_part_and_replaces_a_foreign_one(store: Path, tmp_path: Path) -> None:
    content = content_of(3 * CHUNK_BYTES)
    (store / "weights").write_bytes(content)
    target = tmp_path / "weights"
    for part, carried in ((content[:CHUNK_BYTES], 2 * CHUNK_BYTES), (b"x" * 9, 6 * CHUNK_BYTES - 9)):
        (tmp_path / ".weights.partial").write_bytes(part)
        files = BreakingFiles(str(store), ())
        receive(Wanted("weights", target, len(content), sha256(content)), files, patient())
        assert target.read_bytes() == content
        assert files.carried == carried
        target.unlink()


def test_a_damaged_file_of_the_store_is_refused_and_not_kept(store: Path, tmp_path: Path) -> None:
    (store / "weights").write_bytes(b"damaged")
    with pytest.raises(OperationError, match="weights has another content than its manifest says"):
        receive(
            Wanted("weights", tmp_path / "weights", 7, sha256(b"correct")),
            StoredFiles(str(store)),
            patient(),
        )
    assert sorted(file.name for file in tmp_path.iterdir()) == ["store"]


def test_an_own_file_is_kept_and_an_equal_one_is_not_fetched_again(store: Path, tmp_path: Path) -> None:
    (store / "report.html").write_bytes(b"page")
    target, files = tmp_path / "report.html", BreakingFiles(str(store), ())
    wanted = Wanted("report.html", target, 4, sha256(b"page"))
    target.write_bytes(b"mine")
    with pytest.raises(OperationError, match="exists and has another content: move it away") as refusal:
        receive(wanted, files, patient())
    assert refusal.value.exit_code == ProgramExit.EXISTS
    assert target.read_bytes() == b"mine"
    target.write_bytes(b"page")
    assert not receive(wanted, files, patient())
    assert files.carried == 0


def test_a_file_that_changes_during_its_upload_is_named(store: Path, rows: Path) -> None:
    file = LocalFile.of(rows, "rows.jsonl")
    rows.write_bytes(b"another")
    with pytest.raises(OperationError, match=r"rows\.jsonl changes while it is read"):
        send(file, StoredFiles(str(store)), "part", patient())


def test_a_file_that_grows_while_it_is_sent_is_named(store: Path, rows: Path) -> None:
    class Growing(StoredFiles):
        def write(self, path: str, offset: int, chunks: object) -> None:
            with rows.open("ab") as file:
                file.write(b"more")
            super().write(path, offset, chunks)  # type: ignore[arg-type]

    file = LocalFile.of(rows, "rows.jsonl")
    with pytest.raises(OperationError, match=r"rows\.jsonl changes while it is read"):
        send(file, Growing(str(store)), "part", patient())


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OperationError, match="pipe is not a regular file"):
        LocalFile.of(tmp_path / "pipe", "pipe")
    with pytest.raises(StoredFilesError, match="pipe is not a regular file"):
        list(StoredFiles(str(tmp_path)).read("pipe", 0))


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../secret", "a/../../secret", "link/secret", "link"])
def test_no_operation_leaves_the_store(folder_files: Files, store: Path, tmp_path: Path, path: str) -> None:
    files = folder_files
    (tmp_path / "secret").write_text("secret")
    (store / "link").symlink_to(tmp_path)
    for operation in (
        lambda: list(files.read(path, 0)),
        lambda: files.write(path, 0, [b"x"]),
        lambda: files.size(path),
        lambda: files.remove(path),
    ):
        with pytest.raises(StoredFilesError, match=r"below the store|out of the store"):
            operation()
    assert (tmp_path / "secret").read_text() == "secret"


def test_a_full_store_is_reported_by_name_and_the_part_stays(
    store: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: object, chunk: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(stored_files, "_write_all", full)
    with pytest.raises(StoredFilesError, match=r"no space is left for part: No space left on device"):
        send(LocalFile.of(rows, "rows.jsonl"), StoredFiles(str(store)), "part", patient())
    assert (store / "part").exists()


def test_a_process_reports_why_it_cannot_write(store: Path, rows: Path) -> None:
    (store / "part").mkdir()
    process = ProcessFiles([sys.executable, *server_command(str(store))[1:]])
    try:
        for _ in range(2):
            with pytest.raises(StoredFilesError, match="part: Is a directory"):
                process.write("part", 0, [b"x" * CHUNK_BYTES] * 40)
        assert process.size("rows.jsonl") is None
    finally:
        process.close()


@pytest.mark.parametrize(
    ("script", "reason", "expected"),
    [
        ("echo 'error: unable to upgrade connection' >&2; exit 1", "unable to upgrade", ConnectionLost),
        ("head -c 100 >/dev/null; exit 0", "the connection ended", ConnectionLost),
        ("echo '[1, 2]'; cat >/dev/null", "the connection ended", ConnectionLost),
        ("echo not JSON; cat >/dev/null", "the connection ended", ConnectionLost),
        ("cat >/dev/null", "no data for 0 seconds", ConnectionLost),
        ("echo 'Error from server (Forbidden): no pods/exec' >&2", "Forbidden", StoredFilesError),
    ],
)
def test_a_connection_that_breaks_says_why(script: str, reason: str, expected: type[Exception]) -> None:
    process = ProcessFiles(["sh", "-c", script], stall_seconds=0.3)
    try:
        for _ in range(2):
            with pytest.raises(expected, match=reason):
                process.size("rows.jsonl")
    finally:
        process.close()


def test_a_connection_that_stays_lost_ends_with_what_to_do(store: Path, rows: Path) -> None:
    pauses: list[float] = []
    files = BreakingFiles(str(store), [0] * 9)
    with pytest.raises(OperationError, match=r"lost 5 times in a row \(broken\): run the same command again"):
        send(LocalFile.of(rows, "rows.jsonl"), files, "part", Carrier(patience=Patience(pause=pauses.append)))
    assert pauses == [1, 2, 5, 10]
