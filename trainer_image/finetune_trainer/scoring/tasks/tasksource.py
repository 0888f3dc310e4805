# SPDX-License-Identifier: Apache-2.0
"""The files of a task: read once, checked, and known by a digest. Nothing of them is executed."""

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from finetune_trainer.scoring.tasks.taskfile import TaskFile, TaskFileError, parse_task_file

COMPRESSED: Final = ".gz"
MAX_FILE_BYTES: Final = 32 * 1024 * 1024
"""Of a file of rows, uncompressed. A ConfigMap holds 1 MiB."""


@dataclass(frozen=True)
class TaskSource:
    """A task file and the rows that it names."""

    file: TaskFile
    rows: Mapping[str, Sequence[dict[str, Any]]]
    """The rows of each split, at least one."""
    digest: str
    """`sha256:` and 64 hexadecimal digits, of the content of all files."""


def read_source(folder: Path, name: str) -> TaskSource:
    """The task in a file of a folder. Raises TaskFileError, which names the file."""
    digest = hashlib.sha256()
    text = _read(folder / name, digest)
    try:
        file = parse_task_file(text.decode())
    except (TaskFileError, ValueError) as error:
        raise TaskFileError(f"{name}: {error}") from error
    rows = {
        split: _rows(folder / data, _read(folder / data, digest))
        for split, data in sorted(file.dataset_kwargs.data_files.items())
    }
    return TaskSource(file, rows, f"sha256:{digest.hexdigest()}")


def _read(path: Path, digest: "hashlib._Hash") -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TaskFileError(
            f"{path.name}: it cannot be read: {error.strerror}; is it in the ConfigMap?"
        ) from error
    digest.update(hashlib.sha256(content).digest())
    return content


def _rows(path: Path, content: bytes) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(_uncompressed(path, content).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise TaskFileError(f"{path.name}: line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise TaskFileError(f"{path.name}: line {number} is not a JSON object")
        rows.append(row)
    if not rows:
        raise TaskFileError(f"{path.name}: it has no rows")
    return rows


def _uncompressed(path: Path, content: bytes) -> bytes:
    if path.suffix != COMPRESSED:
        return content
    reader = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        text = reader.decompress(content, MAX_FILE_BYTES)
    except zlib.error as error:
        raise TaskFileError(f"{path.name}: it is not compressed by gzip: {error}") from error
    if reader.unconsumed_tail:
        raise TaskFileError(f"{path.name}: it has more than {MAX_FILE_BYTES} bytes without compression")
    if not reader.eof:
        raise TaskFileError(f"{path.name}: it ends before its compressed content does")
    return text
