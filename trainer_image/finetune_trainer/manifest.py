# SPDX-License-Identifier: Apache-2.0
"""Manifest of a folder: its files with sizes and hashes. The hash of the manifest names the content."""

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Annotated, BinaryIO, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from finetune_trainer import canonical_json
from finetune_trainer.contract.base import Digest

MANIFEST_NAME: Final = "manifest.json"
CHUNK_BYTES: Final = 1 << 20

OnBytes = Callable[[int], None]
"""Called with the number of bytes of each chunk."""


def ignore_bytes(_: int) -> None:
    """`OnBytes` for callers that show no progress."""


def hash_file(path: Path, on_bytes: OnBytes = ignore_bytes) -> str:
    """Return the SHA-256 of a file's content as 64 hexadecimal digits. Raises OSError."""
    with path.open("rb") as file:
        return hash_content(file, on_bytes)


def hash_content(file: BinaryIO, on_bytes: OnBytes = ignore_bytes) -> str:
    """Return the SHA-256 of the rest of an open file as 64 hexadecimal digits. Raises OSError."""
    content = hashlib.sha256()
    while chunk := file.read(CHUNK_BYTES):
        content.update(chunk)
        on_bytes(len(chunk))
    return content.hexdigest()


def _inside(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or str(PurePosixPath(path)) != path:
        raise ValueError("a file's path must be relative and stay inside the folder")
    if path == MANIFEST_NAME:
        raise ValueError("a manifest must not list itself")
    return path


class FileEntry(BaseModel):
    """One file: its path with `/` below the folder, its size, its SHA-256."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Annotated[str, AfterValidator(_inside)]
    bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Manifest(BaseModel):
    """Files of a folder, sorted by path. Omits times and owners, so that equal content has equal digests."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    files: tuple[FileEntry, ...]

    @classmethod
    def of(cls, folder: Path, paths: Iterable[str] | None = None, on_bytes: OnBytes = ignore_bytes) -> Self:
        """Hash the named files of a folder, or all files except the manifest. Raises OSError."""
        names = sorted(_files_below(folder) if paths is None else set(paths))
        return cls(
            files=tuple(
                FileEntry(
                    path=name,
                    bytes=(folder / name).stat().st_size,
                    sha256=hash_file(folder / name, on_bytes),
                )
                for name in names
            )
        )

    def to_bytes(self) -> bytes:
        """Return the content of `manifest.json`."""
        return canonical_json.encode(self.model_dump(mode="json"))

    @property
    def digest(self) -> Digest:
        """Name of the folder: the SHA-256 of the manifest's bytes."""
        return digest_of(self.to_bytes())

    @property
    def total_bytes(self) -> int:
        """Total size of all files."""
        return sum(file.bytes for file in self.files)


def digest_of(content: bytes) -> Digest:
    """Return the SHA-256 of `content` as `sha256:` and 64 hexadecimal digits."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _files_below(folder: Path) -> Iterable[str]:
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            if Path(root, name).is_symlink():
                raise OSError(
                    f"{Path(root, name)} is a symbolic link; an artifact must contain only regular files"
                )
        for name in files:
            path = Path(root, name).relative_to(folder).as_posix()
            if path != MANIFEST_NAME:
                yield path
