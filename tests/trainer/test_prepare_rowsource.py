# SPDX-License-Identifier: Apache-2.0
"""The version of a source on a volume, which changes with its content."""

import os
import threading
from pathlib import Path

import pytest

from finetune_trainer.prepare.row_sources import MountedRows


def version(path: Path, scheme: str = "pvc") -> str:
    return MountedRows(path, f"{scheme}://rows/{path.name}", threading.Event()).version


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("{}")
    return path


def test_an_unchanged_file_keeps_its_version(rows: Path) -> None:
    assert version(rows) == version(rows)


def test_a_rewritten_file_on_a_claim_has_a_new_version(rows: Path) -> None:
    first, times = version(rows), rows.stat()

    os.utime(rows, ns=(times.st_atime_ns, times.st_mtime_ns + 1_000_000))

    assert version(rows) != first


def test_a_file_of_another_size_has_a_new_version_with_the_same_time(rows: Path) -> None:
    first, times = version(rows), rows.stat()

    rows.write_text("{} ")
    os.utime(rows, ns=(times.st_atime_ns, times.st_mtime_ns))

    assert version(rows) != first


def test_an_additional_file_in_a_folder_is_a_new_version(rows: Path) -> None:
    first = version(rows.parent)

    (rows.parent / "more.jsonl").write_text("{}")

    assert version(rows.parent) != first


def test_a_configmap_is_identified_by_its_bytes_because_every_pod_gets_new_files(rows: Path) -> None:
    first = version(rows, "configmap")

    os.utime(rows, ns=(1, 1))
    assert version(rows, "configmap") == first

    rows.write_text("[]")
    os.utime(rows, ns=(1, 1))
    assert version(rows, "configmap") != first
