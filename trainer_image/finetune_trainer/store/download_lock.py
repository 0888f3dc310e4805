# SPDX-License-Identifier: Apache-2.0
"""Lock so that only one process downloads a content into a store. Others wait and then find it there.

The process that downloads writes a note into the store, and renews it every few seconds. A note that no
longer changes belongs to a pod that no longer exists. Two pods that write their notes at the same moment may
both download the content. That costs time but does no harm.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

from pydantic import BaseModel, ValidationError

from finetune_trainer.runtime.termination import Preempted, StageFailure
from finetune_trainer.store.base import Store

RENEW_SECONDS: Final = 10.0
STALE_SECONDS: Final = 60.0
"""A note that has not changed for this long has no owner any more."""
POLL_SECONDS: Final = 2.0
CONFIRM_SECONDS: Final = 1.0
"""Time between writing a note and checking that no other process has overwritten it."""

Found = TypeVar("Found")

logger = logging.getLogger(__name__)


class _LockNote(BaseModel):
    run: str
    number: int = 0
    """Number of the renewal."""


@contextmanager
def download_lock(
    name: str, run: str, find: Callable[[], Found | None], store: Store, stop: threading.Event
) -> Iterator[Found | None]:
    """Wait until no other run downloads the content `name`, a file name, into the store.

    Yields what `find` finds if the content is in the store by then. Otherwise yields None, and this run holds
    the lock until the block ends.
    Raises StageFailure (STORE_UNAVAILABLE), Preempted once `stop` is set, and what `find` raises.
    """
    note = _Note(name, run, store, stop)
    found = note.acquire(find)
    if found is not None:
        yield found
        return
    ended = threading.Event()
    renewal = threading.Thread(target=note.renew, args=(ended,), name="download lock", daemon=True)
    renewal.start()
    try:
        yield None
    finally:
        ended.set()
        renewal.join()
        store.write_download_note(name, b"")


@dataclass(frozen=True)
class _Note:
    name: str
    run: str
    store: Store
    stop: threading.Event

    def acquire(self, find: Callable[[], Found | None]) -> Found | None:
        seen, seen_at = None, time.monotonic()
        while (found := find()) is None:
            note = self._read()
            if note != seen:
                if seen is None and note is not None and note.run != self.run:
                    logger.info("waiting for run %s, which is downloading %s", note.run, self.name)
                seen, seen_at = note, time.monotonic()
            if note is not None and note.run != self.run and time.monotonic() - seen_at < STALE_SECONDS:
                self._pause(POLL_SECONDS)
                continue
            self._write(_LockNote(run=self.run))
            self._pause(CONFIRM_SECONDS)
            current = self._read()
            if current is None or current.run == self.run:
                return None
        return found

    def renew(self, ended: threading.Event) -> None:
        number = 0
        while not ended.wait(RENEW_SECONDS):
            number += 1
            try:
                self._write(_LockNote(run=self.run, number=number))
            except StageFailure as failure:
                logger.warning("another run may download the same content: %s", failure.message)

    def _pause(self, seconds: float) -> None:
        if self.stop.wait(seconds):
            raise Preempted

    def _read(self) -> _LockNote | None:
        content = self.store.read_download_note(self.name)
        try:
            return _LockNote.model_validate_json(content) if content else None
        except ValidationError as error:
            logger.warning("ignoring a damaged note about a download: %s", error)
            return None

    def _write(self, note: _LockNote) -> None:
        self.store.write_download_note(self.name, note.model_dump_json().encode())
