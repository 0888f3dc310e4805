"""The base model on its way into the store, once for all runs that use it."""

import logging
import shutil
from pathlib import Path
from typing import Final

from finetune_trainer.context import StageContext
from finetune_trainer.contract import ArtifactRef, Digest, FailureReason
from finetune_trainer.failure import StageFailure
from finetune_trainer.manifest import FileEntry, Manifest
from finetune_trainer.meter import Meter
from finetune_trainer.preflight.fetching import BaseModel
from finetune_trainer.preflight.files import invalid

CHUNK_BYTES: Final = 1 << 20

logger = logging.getLogger(__name__)


def check_digest(uri: str, found: Digest, expected: Digest | None) -> None:
    """Raises StageFailure (BASE_MODEL_DIGEST_MISMATCH) where the user named another digest."""
    if expected is not None and expected != found:
        raise StageFailure(
            FailureReason.BASE_MODEL_DIGEST_MISMATCH,
            f"baseModel {uri}: its digest is {found}, but spec.baseModel.digest asks for {expected}; restore"
            " the files, or name the new digest in a new FineTuneJob",
        )


def store_model(uri: str, model: BaseModel, manifest: Manifest, context: StageContext, meter: Meter) -> None:
    """Have the model in the store; a download is moved there, other files are copied.

    Counts the bytes on `meter`. Raises StageFailure: BASE_MODEL_INVALID where the files change meanwhile;
    STORE_UNAVAILABLE. Raises OSError about the source, Preempted.
    """
    ref = ArtifactRef(kind="models", digest=manifest.digest)
    if context.store.has(ref):
        meter.begin("the store has this base model already")
        meter.add(manifest.total_bytes)
    else:
        meter.begin("taking the base model into the store")
        with context.store.staging() as staging:
            for file in manifest.files:
                _take(model, file, staging, meter)
            logger.info("checking what was written")
            if context.store.publish("models", staging) != manifest.digest:
                raise invalid(uri, "its files were changed while they were copied; run again")
    if model.source is not None:
        context.store.remember_model(model.source, ref)


def _take(model: BaseModel, file: FileEntry, staging: Path, meter: Meter) -> None:
    source, target = model.folder / file.path, staging / file.path
    if model.source is not None:
        shutil.move(source, target)
        meter.add(file.bytes)
        return
    with source.open("rb") as reading, target.open("wb") as writing:
        while chunk := reading.read(CHUNK_BYTES):
            writing.write(chunk)
            meter.add(len(chunk))
