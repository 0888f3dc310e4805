# SPDX-License-Identifier: Apache-2.0
"""Sources that unpack to a large size, change during the read, or have an unsupported kind."""

import gzip
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune_trainer.data.files import Budget, FileChanged, SourceFile, TooLarge
from finetune_trainer.data.pipeline import prepare
from finetune_trainer.data.recipe import Recipe
from finetune_trainer.data.result import Prepared
from finetune_trainer.data.row_problems import Code
from finetune_trainer.report.document import document, encode
from tests.trainer.preparing import json_lines, pairs


def prepared(
    folder: Path,
    content: bytes,
    name: str = "rows.jsonl",
    budget: Budget | None = None,
    limit_bytes: int | None = None,
) -> Prepared:
    path = folder / name
    path.write_bytes(content)
    (folder / "out").mkdir(exist_ok=True)
    return prepare([SourceFile(path, budget=budget)], Recipe(), folder / "out", limit_bytes=limit_bytes)


def test_unpacked_bytes_are_limited_for_all_files_together(tmp_path: Path) -> None:
    budget = Budget("the unpacked files", 3 << 20)
    packed = gzip.compress(json_lines(pairs(1)).encode() * (2 << 20 >> 6))
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_bytes(packed)
    files = [SourceFile(tmp_path / name, budget=budget) for name in ("a.jsonl", "b.jsonl")]

    with pytest.raises(TooLarge, match=r"the unpacked files exceed 3 MiB; .* raise limits.unpackedBytes"):
        prepare(files, Recipe(), tmp_path)


def test_the_size_of_prepared_rows_is_limited(tmp_path: Path) -> None:
    with pytest.raises(TooLarge, match=r"the prepared rows exceed 0\.01 MiB"):
        prepared(tmp_path, json_lines(pairs(1000)).encode(), limit_bytes=10_486)


@pytest.mark.parametrize(("limit", "shown"), [(None, "64 GiB"), (5 << 40, "5120 GiB"), (3 << 29, "1.5 GiB")])
def test_the_default_limit_is_64_gib(limit: int | None, shown: str) -> None:
    budget = Budget("the unpacked files", limit)
    with pytest.raises(TooLarge, match=f"exceed {shown};"):
        budget.use(6 << 40)


def test_millions_of_empty_lines_end_with_a_message(tmp_path: Path) -> None:
    content = gzip.compress(json_lines(pairs(300)).encode() + b"\n" * 30_000_000)

    found = prepared(tmp_path, content, "rows.jsonl.gz")

    (problem,) = (each for each in found.problems if each.issue.code == Code.FILE_DAMAGED)
    assert found.broken_files == 1
    assert str(problem.issue) == (
        "the file cannot be read to its end: more than 1,000,000 consecutive lines are empty; no row after"
        " row 300 was used; expected a complete file; remove the empty lines"
    )


def _append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\n")


def _exchange(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    other.replace(path)


def _rewrite(path: Path) -> None:
    status = path.stat()
    path.write_bytes(path.read_bytes().replace(b"question", b"quection"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


@pytest.mark.parametrize("change", [_append, _exchange, _rewrite])
@pytest.mark.parametrize("when", ["before", "while"])
def test_a_file_that_changes_while_it_is_read_is_rejected(
    tmp_path: Path, change: Callable[[Path], None], when: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json_lines(pairs(300)))
    file = SourceFile(path)
    if when == "before":
        assert file.size > 0
        change(path)

    def read() -> None:
        for number, _ in enumerate(file.lines()):
            if number == 0 and when == "while":
                change(path)
        file.finish()
        # A replaced file was read completely; the next access detects the replacement.
        file.head(1)

    with pytest.raises(
        FileChanged, match=r"rows\.jsonl: changed while it was read; run again when no process"
    ):
        read()


def test_names_of_unused_fields_are_limited(tmp_path: Path) -> None:
    rows = [{**row, f"{number}{'x' * 5000}": 1} for number, row in enumerate(pairs(1000))]

    found = prepared(tmp_path, json_lines(rows).encode())

    assert (len(found.unused_fields), max(map(len, found.unused_fields))) == (200, 200)
    assert len(encode(document(found))) < 100_000


def _archive() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("rows.jsonl"))
    return content.getvalue()


ROWS = json_lines(pairs(30))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (ROWS.encode("utf-16-le"), "the file is UTF-16 text without a byte order mark; expected"),
        (ROWS.encode("utf-16-be"), "the file is UTF-16 text without a byte order mark; expected"),
        ("prompt,completion\na,b\n".encode("utf-16-le"), "the file is UTF-16 text without a byte order mark"),
        (b"prompt,completion\ra,b\rc,d\r", "the file has lines that end with CR only; expected"),
        (ROWS.replace("\n", "\r").encode(), "the file has lines that end with CR only; expected"),
        (_archive(), "the file is a tar archive; expected JSON Lines or CSV in UTF-8; unpack it (tar -xf)"),
        (gzip.compress(_archive()), "the file is a tar archive"),
        (b"\xfd7zXZ\x00abc", "the file is compressed by xz"),
        (b"BZh91AY&SY", "the file is compressed by bzip2"),
        (b"<!DOCTYPE html><html>", "the file is a web page"),
    ],
)
def test_the_kind_of_an_unsupported_file_is_reported(tmp_path: Path, content: bytes, message: str) -> None:
    (problem,) = prepared(tmp_path, content).problems

    assert problem.issue.code == Code.FILE_UNKNOWN
    assert str(problem.issue).startswith(message)


@pytest.mark.parametrize(
    "content", [b"prompt,completion\r\na,b\r\n", b'[\r{"prompt":"a","completion":"b"}\r]\r']
)
def test_files_with_other_line_ends_are_read(tmp_path: Path, content: bytes) -> None:
    assert prepared(tmp_path, content).rows == 1
