# SPDX-License-Identifier: Apache-2.0
"""Paths of users name files in the folder that the user fills, and nothing else."""

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune_trainer.rooted_open import (
    OpenDirectory,
    PathRefused,
    kind_of,
    names_in,
    open_file,
    read_file,
    require_beneath,
    root_of,
)

SECRET = "hf_aVeryLongTokenThatNobodyMaySee"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The user's volume, next to files that only the pod may read."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "token").write_text(SECRET)
    root = tmp_path / "volume"
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "rows.jsonl").write_text("rows")
    return root


def link(path: Path, target: str | Path) -> Path:
    path.symlink_to(target)
    return path


def escapes(root: Path) -> Iterator[Path]:
    token = root.parent / "secret" / "token"
    yield link(root / "absolute", token)
    yield link(root / "relative", "../secret/token")
    yield link(root / "a" / "b" / "deep", "../../../secret/token")
    yield link(root / "folder", "../secret") / "token"
    yield link(root / "chain", "folder") / "token"
    yield link(root / "back", "folder/../secret/token")
    yield link(root / "environment", "/proc/self/environ")
    yield link(root / "magic", "/proc/self/root") / str(token).lstrip("/")
    yield link(root / "itself", "itself")
    yield root / ".." / "secret" / "token"
    yield root / "a" / ".." / ".." / "secret" / "token"
    yield token


def test_no_link_and_no_dots_lead_out(root: Path) -> None:
    for path in escapes(root):
        with pytest.raises(PathRefused):
            open_file(path, root)
        with pytest.raises(PathRefused):
            kind_of(path, root)


def test_folders_outside_are_neither_listed_nor_written_to(root: Path) -> None:
    link(root / "folder", "../secret")

    with pytest.raises(PathRefused):
        names_in(root / "folder", root)
    with pytest.raises(PathRefused):
        require_beneath(root / "folder" / "new" / "file", root)
    require_beneath(root / "a" / "new" / "file", root)


@pytest.mark.parametrize(
    "target", ["a/rows.jsonl", "./a/b/../rows.jsonl", "short/rows.jsonl", "{root}/a/rows.jsonl"]
)
def test_a_link_that_stays_inside_is_followed(root: Path, target: str) -> None:
    link(root / "short", "a")
    link(root / "rows.jsonl", target.format(root=root))

    assert read_file(root / "rows.jsonl", root) == b"rows"
    assert kind_of(root / "rows.jsonl", root) == "File"


def test_dots_after_a_link_are_those_of_its_target(root: Path) -> None:
    link(root / "short", "a/b")
    link(root / "back", "a/b/..")

    assert names_in(root / "back", root) == names_in(root / "short" / "..", root) == ["b", "rows.jsonl"]
    assert names_in(root / "a" / "..", root) == ["a", "back", "short"]
    assert read_file(root / "short" / ".." / "rows.jsonl", root) == b"rows"


def test_what_is_no_file_is_named_without_waiting_for_a_writer(root: Path) -> None:
    os.mkfifo(root / "pipe")
    link(root / "device", "/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(root / "socket"))

        for name, what in (("pipe", "named pipe"), ("socket", "socket"), ("a", "folder")):
            with pytest.raises(PathRefused, match=f"not a regular file but a {what}; save its content"):
                open_file(root / name, root)
    with pytest.raises(PathRefused, match="not a regular file but a device"):
        open_file(Path("/dev/zero"))
    with pytest.raises(PathRefused, match="not a regular file but a named pipe"):
        open_file(root / "pipe")
    with pytest.raises(PathRefused, match="leads out"):
        open_file(root / "device", root)


def test_a_missing_file_is_not_found_and_named(root: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        open_file(root / "a" / "absent", root)

    assert caught.value.filename == str(root / "a" / "absent")
    assert kind_of(root / "a" / "absent", root) == "Nothing"
    assert kind_of(root / "a" / "rows.jsonl" / "below", root) == "Nothing"


def test_a_file_that_is_exchanged_for_a_link_meanwhile_never_opens_the_target(root: Path) -> None:
    """Test the race between check and open: the name alternates between a file and a link."""
    path, done = root / "rows.jsonl", threading.Event()
    path.write_text("rows")
    (root / "a" / "out").symlink_to("../../secret/token")

    def exchange() -> None:
        while not done.is_set():
            (root / "file").write_text("rows")
            (root / "file").replace(path)
            (root / "link").symlink_to("../secret/token")
            (root / "link").replace(path)

    thread = threading.Thread(target=exchange)
    thread.start()
    read, refused = 0, 0
    try:
        while not (read > 200 and refused > 200):
            try:
                assert read_file(path, root) in (b"rows", b"")
                read += 1
            except OSError:
                refused += 1
    finally:
        done.set()
        thread.join()


def test_what_is_held_stays_what_it_was(root: Path) -> None:
    path = root / "a" / "rows.jsonl"

    with OpenDirectory(root / "a", root) as held:
        held.add(["rows.jsonl"])
        path.unlink()
        path.symlink_to("../../secret/token")

        assert (held.path / "rows.jsonl").read_text() == "rows"
        assert (held.path / "rows.jsonl").stat().st_size == 4
    assert not held.path.exists()


def test_the_root_is_the_volume_or_outside_a_pod_the_files_folder() -> None:
    assert root_of(Path("/mnt/source/2030/rows.jsonl"), "/mnt/source") == Path("/mnt/source")
    assert root_of(Path("/mnt/source"), "/mnt/source") == Path("/mnt/source")
    assert root_of(Path("/mnt/sources/rows.jsonl"), "/mnt/source") == Path("/mnt/sources")
