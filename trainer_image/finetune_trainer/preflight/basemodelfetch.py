"""The base model on its way into the store, once for all runs that use it."""

import os
import shutil
from pathlib import Path
from typing import Final

from finetune_trainer.contract.base import Digest
from finetune_trainer.contract.outcomes import FailureReason
from finetune_trainer.contract.references import ArtifactRef, ParentCheckpoint
from finetune_trainer.manifest import FileEntry, Manifest
from finetune_trainer.preflight.modelfiles import invalid
from finetune_trainer.preflight.modelsource import LocalModel
from finetune_trainer.runtime.failure import StageFailure
from finetune_trainer.stage.context import StageContext
from finetune_trainer.stage.meter import StageMeter

CHUNK_BYTES: Final = 1 << 20


def check_digest(uri: str, found: Digest, expected: Digest | None, parent: ParentCheckpoint | None) -> None:
    """Raises StageFailure (BASE_MODEL_DIGEST_MISMATCH) where the user named another digest, or the parent was
    trained from another."""
    if expected is None or expected == found:
        return
    if parent is not None:
        raise StageFailure(
            FailureReason.BASE_MODEL_DIGEST_MISMATCH,
            f"baseModel {uri}: its digest is {found}, but Checkpoint {parent.name} was trained from"
            f" {expected}, which the store no longer has; restore the files, or start from the new ones with"
            " baseModel.uri in a new FineTuneJob",
        )
    raise StageFailure(
        FailureReason.BASE_MODEL_DIGEST_MISMATCH,
        f"baseModel {uri}: its digest is {found}, but spec.baseModel.digest asks for {expected}; restore"
        " the files, or name the new digest in a new FineTuneJob",
    )


def store_model(
    uri: str, model: LocalModel, manifest: Manifest, context: StageContext, meter: StageMeter
) -> None:
    """Have the model in the store; a download is linked or moved there, other files are copied.

    Counts the bytes on `meter` twice: when they are taken, and when the store keeps them.
    Raises StageFailure: BASE_MODEL_INVALID where the files change meanwhile; STORE_UNAVAILABLE. Raises
    OSError about the source, Preempted.
    """
    ref = ArtifactRef(kind="models", digest=manifest.digest)
    if context.store.has(ref):
        meter.begin("the store has this base model already")
        meter.add(2 * manifest.total_bytes)
    else:
        meter.begin("taking the base model into the store")
        with context.store.staging() as staging:
            for file in manifest.files:
                _take(model, file, staging, meter)
            meter.begin("checking what was written, and keeping it")
            if context.store.publish("models", staging, meter.add) != manifest.digest:
                raise invalid(uri, "its files were changed while they were copied; run again")
    if model.source is not None:
        context.store.remember_model(model.source, ref)


def _take(model: LocalModel, file: FileEntry, staging: Path, meter: StageMeter) -> None:
    source, target = model.folder / file.path, staging / file.path
    if model.source is not None:
        _link(source, target)
        meter.add(file.bytes)
        return
    with source.open("rb") as reading, target.open("wb") as writing:
        while chunk := reading.read(CHUNK_BYTES):
            writing.write(chunk)
            meter.add(len(chunk))


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, so that a pod that is stopped now loses nothing of the download.

    Where the file system has no such links the file is moved: the next pod downloads that one again.
    """
    try:
        os.link(source, target)
    except OSError:
        shutil.move(source, target)
