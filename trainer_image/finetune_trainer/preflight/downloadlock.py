"""One download of a base model at a time: who comes second waits, and finds the model in the store.

A note beside what the store knows of the model says which run downloads it, and changes every few seconds for
as long as it does. A note that no longer changes is that of a pod which is gone. Two pods that write their
notes in the same moment may both download; that costs time and harms nothing.
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
"""A note that has not changed for so long is nobody's."""
POLL_SECONDS: Final = 2.0
CONFIRM_SECONDS: Final = 1.0
"""Between writing a note and reading whose it is."""

logger = logging.getLogger(__name__)


class _LockNote(BaseModel):
    run: str
    number: int = 0
    """Of the renewal."""


@contextmanager
def download_lock(source: str, run: str, context: StageContext) -> Iterator[ArtifactRef | None]:
    """Wait until no other run downloads the model that the store remembers by `source`.

    Gives the model where the store has it by then; else it is this run's turn, until the block ends.
    Raises StageFailure (STORE_UNAVAILABLE), Preempted.
    """
    known = _wait(source, run, context)
    if known is not None:
        yield known
        return
    ended = threading.Event()
    renewal = threading.Thread(
        target=_renew, args=(source, run, context, ended), name="download turn", daemon=True
    )
    renewal.start()
    try:
        yield None
    finally:
        ended.set()
        renewal.join()
        context.store.write_download_note(source, b"")


def _wait(source: str, run: str, context: StageContext) -> ArtifactRef | None:
    seen, seen_at = None, time.monotonic()
    while (known := context.store.model_from(source)) is None:
        note = _read(source, context)
        if note != seen:
            if seen is None and note is not None and note.run != run:
                logger.info("run %s downloads this base model already; waiting for it", note.run)
            seen, seen_at = note, time.monotonic()
        if note is not None and note.run != run and time.monotonic() - seen_at < STALE_SECONDS:
            _pause(POLL_SECONDS, context)
            continue
        _write(source, _LockNote(run=run), context)
        _pause(CONFIRM_SECONDS, context)
        mine = _read(source, context)
        if mine is None or mine.run == run:
            return None
    return known


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
        logger.warning("a damaged note about a download is not used: %s", error)
        return None


def _write(source: str, note: _LockNote, context: StageContext) -> None:
    context.store.write_download_note(source, note.model_dump_json().encode())
