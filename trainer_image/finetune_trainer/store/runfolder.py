# SPDX-License-Identifier: Apache-2.0
"""Interface of the folder of one stage of a run, in all stores."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Self

from finetune_trainer.manifest import FileEntry, Manifest
from finetune_trainer.store.failures import Mount, any_file


class RunFolder(ABC):
    """The folder of one stage of a run. Names are relative, with `/`.

    Small files are read and written whole. Large files, and folders, are written below `path` and then kept.
    A bucket uploads them in the background; leaving the block waits for the uploads.
    """

    def __init__(self, uri: str, path: Path) -> None:
        self.uri = uri
        """Uri of the folder, for messages."""
        self.path = path
        """Folder that the stage writes to, on a file system of the pod."""

    @property
    def mount(self) -> Mount:
        """`path`, with its name in messages."""
        return Mount(str(self.path), self.path)

    def __enter__(self) -> Self:
        return self

    @abstractmethod
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait until everything kept is in the store. Raises StageFailure (STORE_UNAVAILABLE)."""

    @abstractmethod
    def writable(self, name: str) -> AbstractContextManager[Path]:
        """Yield the path of `name` for writing. An OSError in the block becomes a StageFailure."""

    @abstractmethod
    def read(self, name: str) -> bytes | None:
        """Return the content of a file, or None without one. Raises StageFailure (STORE_UNAVAILABLE)."""

    @abstractmethod
    def write(self, name: str, content: bytes) -> None:
        """Write a file atomically: readers see the old or the new content.

        Raises StageFailure (STORE_UNAVAILABLE).
        """

    @abstractmethod
    def note(self, name: str, content: bytes) -> None:
        """Write a small file that nothing depends on. Never raises, and never waits for a bucket.

        A bucket skips a note while the previous one is uploading, and may lose one with the pod.
        """

    @abstractmethod
    def names(self, parent: str) -> set[str]:
        """Return the names of the subfolders of `parent`. Raises StageFailure (STORE_UNAVAILABLE)."""

    @abstractmethod
    def load(self, name: str, needed: Callable[[str], bool] = any_file) -> Path:
        """Return the path of a folder with those needed files of it that the store has, unverified.

        Raises StageFailure (STORE_UNAVAILABLE), Preempted.
        """

    @abstractmethod
    def keep(self, name: str) -> None:
        """Persist a file or folder that is completely written. A folder is valid once its manifest is stored.

        Raises StageFailure (STORE_UNAVAILABLE), also for files that were kept earlier.
        """

    @abstractmethod
    def part(self, name: str, session: str) -> AbstractContextManager[Path]:
        """Yield the folder for this process's files of `name`, which several processes write together.

        `session` is that of these processes. Raises StageFailure, also for an OSError in the block.
        """

    @abstractmethod
    def keep_part(self, name: str, part: Path, files: Iterable[FileEntry]) -> None:
        """Store the files that this process wrote into `part`. Raises StageFailure (STORE_UNAVAILABLE)."""

    @abstractmethod
    def complete(self, name: str, part: Path, manifest: Manifest) -> None:
        """Make the folder valid, when all files are stored. Raises StageFailure (STORE_UNAVAILABLE)."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file or folder, if it exists. Raises StageFailure (STORE_UNAVAILABLE)."""
