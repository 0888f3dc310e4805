"""The base model on its way into the store, once for all runs that use it."""

import logging
from pathlib import Path
from typing import Final

from finetune_trainer.context import StageContext
from finetune_trainer.contract import ArtifactRef, Digest, FailureReason
from finetune_trainer.failure import StageFailure
from finetune_trainer.manifest import Manifest
from finetune_trainer.meter import Meter
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


def store_model(uri: str, folder: Path, manifest: Manifest, context: StageContext, meter: Meter) -> Path:
    """The model's folder in the store, copied there unless the store has it.

    Counts the bytes on `meter`. Raises StageFailure: BASE_MODEL_INVALID where the files change meanwhile;
    STORE_UNAVAILABLE. Raises OSError about the source, Preempted.
    """
    ref = ArtifactRef(kind="models", digest=manifest.digest)
    if context.store.has(ref):
        meter.begin("the store has this base model already")
        meter.add(manifest.total_bytes)
        return context.store.artifact(ref)
    meter.begin("copying the base model into the store")
    with context.store.staging() as staging:
        for file in manifest.files:
            _copy(folder / file.path, staging / file.path, meter)
        logger.info("checking what was written")
        if context.store.publish("models", staging) != manifest.digest:
            raise invalid(uri, "its files were changed while they were copied; run again")
    return context.store.artifact(ref)


def _copy(source: Path, target: Path, meter: Meter) -> None:
    with source.open("rb") as reading, target.open("wb") as writing:
        while chunk := reading.read(CHUNK_BYTES):
            writing.write(chunk)
            meter.add(len(chunk))
