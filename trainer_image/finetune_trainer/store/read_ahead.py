# SPDX-License-Identifier: Apache-2.0
"""Read an artifact into the page cache while the process still imports its libraries."""

import logging
import os
import threading
from typing import Final

from finetune_trainer.contract.references import ArtifactRef
from finetune_trainer.pod_limits import pod_memory_bytes
from finetune_trainer.rooted_open import open_file
from finetune_trainer.runtime.termination import Preempted, StageFailure
from finetune_trainer.store.base import Store

BUFFER_BYTES: Final = 16 << 20
"""Large reads, because after each one the thread waits for the interpreter, which is busy with imports."""
MAX_MEMORY_SHARE: Final = 0.5
"""Max size of the files relative to the pod's memory: larger files would push each other out of it."""

logger = logging.getLogger(__name__)


def read_ahead(store: Store, ref: ArtifactRef) -> threading.Thread:
    """Start to read the files of an artifact in the background, and return the thread.

    Without effect where the store does not read artifacts in place, or where memory is too small for them.
    Errors are left to the code that needs the files.
    """
    thread = threading.Thread(target=_read_files, args=(store, ref), name="read-ahead", daemon=True)
    thread.start()
    return thread


def _read_files(store: Store, ref: ArtifactRef) -> None:
    if not store.reads_in_place:
        return
    try:
        files = store.manifest(ref).files
        if sum(entry.bytes for entry in files) > MAX_MEMORY_SHARE * pod_memory_bytes():
            return
        folder = store.artifact(ref)
        buffer = bytearray(BUFFER_BYTES)
        for entry in files:
            with os.fdopen(open_file(folder / entry.path, folder), "rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass
    except (OSError, StageFailure, Preempted) as error:
        logger.debug("reading ahead has ended: %s", error)
