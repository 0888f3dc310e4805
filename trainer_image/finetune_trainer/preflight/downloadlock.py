"""Lock so that only one run downloads a base model. Other runs wait and then find the model in the store.

The run that downloads writes a note next to the store's entry for the model, and renews it every few seconds.
A note that no longer changes belongs to a pod that no longer exists. Two pods that write their notes at the
same moment may both download the model. That costs time but does no harm.
"""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from pydantic import BaseModel, ValidationError

from finetune_trainer.contract.references import ArtifactRef
from finetune_trainer.runtime.failure import Preempted, StageFailure
from finetune_trainer.stage.context import StageContext

RENEW_SECONDS: Final = 10.0
STALE_SECONDS: Final = 60.0
"""A note that has not changed for this long has no owner any more."""
POLL_SECONDS: Final = 2.0
CONFIRM_SECONDS: Final = 1.0
"""Time between writing a note and checking that no other run has overwritten it."""

logger = logging.getLogger(__name__)


class _LockNote(BaseModel):
    run: str
    number: int = 0
    """Number of the renewal."""


@contextmanager
def download_lock(source: str, run: str, context: StageContext) -> Iterator[ArtifactRef | None]:
    """Wait until no other run downloads the model that the store remembers by `source`.

    Yields the model if the store has it by then. Otherwise yields None, and this run holds the lock until the
    block ends. Raises StageFailure (STORE_UNAVAILABLE), Preempted.
    """
    stored = _acquire(source, run, context)
    if stored is not None:
        yield stored
        return
    ended = threading.Event()
    renewal = threading.Thread(
        target=_renew, args=(source, run, context, ended), name="download lock", daemon=True
    )
    renewal.start()
    try:
        yield None
    finally:
        ended.set()
        renewal.join()
        context.store.write_download_note(source, b"")


def _acquire(source: str, run: str, context: StageContext) -> ArtifactRef | None:
    seen, seen_at = None, time.monotonic()
    while (stored := context.store.model_from(source)) is None:
        note = _read(source, context)
        if note != seen:
            if seen is None and note is not None and note.run != run:
                logger.info("waiting for run %s, which is downloading this base model", note.run)
            seen, seen_at = note, time.monotonic()
        if note is not None and note.run != run and time.monotonic() - seen_at < STALE_SECONDS:
            _pause(POLL_SECONDS, context)
            continue
        _write(source, _LockNote(run=run), context)
        _pause(CONFIRM_SECONDS, context)
        current = _read(source, context)
        if current is None or current.run == run:
            return None
    return stored


def _renew(source: str, run: str, context: StageContext, ended: threading.Event) -> None:
    number = 0
    while not ended.wait(RENEW_SECONDS):
        number += 1
        try:
            _write(source, _LockNote(run=run, number=number), context)
        except StageFailure as failure:
            logger.warning("another run may download the same base model: %s", failure.message)


def _pause(seconds: float, context: StageContext) -> None:
    if context.stop.wait(seconds):
        raise Preempted


def _read(source: str, context: StageContext) -> _LockNote | None:
    content = context.store.read_download_note(source)
    try:
        return _LockNote.model_validate_json(content) if content else None
    except ValidationError as error:
        logger.warning("ignoring a damaged note about a download: %s", error)
        return None


def _write(source: str, note: _LockNote, context: StageContext) -> None:
    context.store.write_download_note(source, note.model_dump_json().encode())
