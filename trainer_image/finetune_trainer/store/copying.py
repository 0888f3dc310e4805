# SPDX-License-Identifier: Apache-2.0
"""Makes verified copies of artifacts on another volume, which is the pod's own or the model cache."""

import hashlib
import logging
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from finetune_trainer.manifest import MANIFEST_NAME, FileEntry
from finetune_trainer.runtime.progressmeter import ProgressMeter
from finetune_trainer.store.base import Store
from finetune_trainer.store.failures import corrupt, writable
from finetune_trainer.store.keys import StoredRef

Writing = Callable[[Path], AbstractContextManager[None]]
"""Context for writes to a path."""

logger = logging.getLogger(__name__)


def copy_artifact(store: Store, ref: StoredRef, target: Path, writing: Writing = writable) -> None:
    """Copy the artifact to `target` and verify each file on the way. Replaces an existing folder.

    `target` gets its name when the copy is complete. `writing` converts an OSError of its volume.
    Raises StageFailure: ARTIFACT_NOT_FOUND, ARTIFACT_CORRUPT naming the file, STORE_UNAVAILABLE, that of
    `writing`, which is INTERNAL for the pod's own volume; Preempted.
    """
    manifest = store.manifest(ref)
    temporary = target.with_name(f".{target.name}.part")
    meter = ProgressMeter(
        manifest.total_bytes,
        lambda done, total: f"{target.name}: {100 * done / total:.0f} % of {total} bytes",
    )
    # A container that was killed leaves a partial copy.
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        for entry in manifest.files:
            with writing(temporary / entry.path):
                _copy_file(store, ref, entry, temporary / entry.path, meter)
        with writing(target):
            temporary.mkdir(parents=True, exist_ok=True)
            (temporary / MANIFEST_NAME).write_bytes(manifest.to_bytes())
            if target.exists():
                shutil.rmtree(target)
            temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    logger.info("verified %s: %d files, %d bytes", target, len(manifest.files), manifest.total_bytes)


def _copy_file(store: Store, ref: StoredRef, entry: FileEntry, target: Path, meter: ProgressMeter) -> None:
    content = hashlib.sha256()
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as copy:
        for chunk in store.chunks(ref, entry):
            content.update(chunk)
            copy.write(chunk)
            meter.add(len(chunk))
    if content.hexdigest() != entry.sha256:
        place = f"{store.uri(ref)}/{entry.path}"
        raise corrupt(place, f"its sha256 is {content.hexdigest()}, not {entry.sha256}")
