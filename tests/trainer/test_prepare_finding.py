# SPDX-License-Identifier: Apache-2.0
"""Finding the files of a source, and messages about missing ones."""

import threading
from pathlib import Path

import pytest

from finetune_trainer.contract.vocabulary import ExitCode, FailureReason
from finetune_trainer.prepare.row_sources import find_files
from finetune_trainer.runtime.termination import Preempted, StageFailure


def find(
    path: Path,
    wait_seconds: float = 0,
    *,
    root: Path | None = None,
    uri: str = "configmap://tickets/rows.jsonl",
) -> list[str]:
    files = find_files(path, uri, threading.Event(), wait_seconds, root=root or path.parent)
    return [file.name for file in files]


def test_a_missing_source_is_named_with_the_files_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "row.jsonl").write_text("{}")

    with pytest.raises(StageFailure) as caught:
        find(tmp_path / "rows.jsonl")

    assert (caught.value.reason, caught.value.exit_code) == (
        FailureReason.SOURCE_NOT_FOUND,
        ExitCode.BAD_DATA,
    )
    assert caught.value.message == (
        "configmap://tickets/rows.jsonl: rows.jsonl not found; the folder has: row.jsonl; create it, or"
        " correct source.uri"
    )


def test_a_folder_without_rows_names_the_supported_extensions(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")

    with pytest.raises(StageFailure, match=r"no file with a supported extension \(\.csv \.json \.jsonl"):
        find(tmp_path)


def test_a_volume_that_was_never_filled_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(StageFailure, match=r"rows\.jsonl not found; the folder is empty"):
        find(tmp_path / "rows.jsonl", uri="pvc://tickets/rows.jsonl")
    with pytest.raises(StageFailure, match="ConfigMap tickets does not exist in this namespace, or has no"):
        find(tmp_path / "rows.jsonl")


def test_a_pattern_without_matches_names_the_files_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")

    with pytest.raises(StageFailure, match=r"no file matches \*\.jsonl; the folder has: notes\.txt; correct"):
        find(tmp_path / "*.jsonl")


def test_a_pattern_matches_names_in_order_except_hidden_ones(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "c.csv", ".hidden.jsonl"):
        (tmp_path / name).write_text("{}")

    assert find(tmp_path / "*.jsonl") == ["a.jsonl", "b.jsonl"]
    assert find(tmp_path / "[bc].*") == ["b.jsonl", "c.csv"]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path: Path) -> None:
    for name in ("rows[1].jsonl", "rows1.jsonl"):
        (tmp_path / name).write_text("{}")

    assert find(tmp_path / "rows[1].jsonl") == ["rows[1].jsonl"]


def test_a_source_that_appears_late_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    threading.Timer(0.2, path.write_text, args=("{}",)).start()

    assert find(path, wait_seconds=60) == ["rows.jsonl"]


def test_a_key_of_a_configmap_is_a_link_and_hidden_names_are_skipped(tmp_path: Path) -> None:
    data = tmp_path / "..2030_01_02"
    data.mkdir()
    (data / "rows.jsonl").write_text("{}")
    (tmp_path / "..data").symlink_to(data)
    (tmp_path / "rows.jsonl").symlink_to(tmp_path / "..data" / "rows.jsonl")

    assert find(tmp_path) == ["rows.jsonl"]


def test_waiting_ends_when_the_pod_is_stopped(tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()

    with pytest.raises(Preempted):
        find_files(tmp_path / "rows.jsonl", "configmap://tickets/rows.jsonl", stop, root=tmp_path)
