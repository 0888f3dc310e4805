# SPDX-License-Identifier: Apache-2.0
"""Connections to files that break, at a byte that a test chooses."""

from collections.abc import Iterable, Iterator

from finetune_client.transfer.files import ConnectionLost
from finetune_client.transfer.stored_files import OnBytes, StoredFiles


class BreakingFiles:
    """Files of a folder behind a connection that breaks after each of these numbers of bytes.

    Operations without content break too, after they had their effect, if `answers_lost` says so.
    """

    resumes = True

    def __init__(self, root: str, breaks: Iterable[int], *, answers_lost: bool = False) -> None:
        self._files = StoredFiles(root)
        self._breaks = iter(breaks)
        self._left = next(self._breaks, None)
        self._answers_lost = answers_lost
        self.carried = 0

    def _carry(self, chunk: bytes) -> Iterator[bytes]:
        if self._left is not None and len(chunk) > self._left:
            kept, self._left = chunk[: self._left], next(self._breaks, None)
            self.carried += len(kept)
            if kept:
                yield kept
            raise ConnectionLost("broken")
        if self._left is not None:
            self._left -= len(chunk)
        self.carried += len(chunk)
        yield chunk

    def _lose_answer(self) -> None:
        if self._answers_lost and self._left is not None:
            self._left = next(self._breaks, None)
            raise ConnectionLost("no answer")

    def size(self, path: str) -> int | None:
        return self._files.size(path)

    def exists(self, path: str) -> bool:
        return self._files.exists(path)

    def digest(self, path: str, on_bytes: OnBytes) -> str:
        digest = self._files.digest(path, on_bytes)
        self._lose_answer()
        return digest

    def read(self, path: str, offset: int) -> Iterator[bytes]:
        for chunk in self._files.read(path, offset):
            yield from self._carry(chunk)

    def write(self, path: str, offset: int, chunks: Iterable[bytes]) -> None:
        self._files.write(path, offset, (part for chunk in chunks for part in self._carry(chunk)))
        self._lose_answer()

    def publish(self, partial: str, path: str) -> None:
        self._files.publish(partial, path)
        self._lose_answer()

    def remove(self, path: str) -> None:
        self._files.remove(path)

    def free_bytes(self) -> int | None:
        return self._files.free_bytes()
