# SPDX-License-Identifier: Apache-2.0
"""Put the base model into the store, once for all runs that use it."""

import os
import shutil
from pathlib import Path
from typing import Final

from finetune_trainer.contract.configs import PreflightConfig
from finetune_trainer.contract.references import ArtifactRef
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.manifest import FileEntry, Manifest
from finetune_trainer.preflight.modelfiles import invalid
from finetune_trainer.preflight.modelsource import LocalModel
from finetune_trainer.runtime.failure import StageFailure
from finetune_trainer.stage.context import StageContext
from finetune_trainer.stage.meter import StageMeter

CHUNK_BYTES: Final = 1 << 20


def require_digest(config: PreflightConfig, found: Manifest) -> None:
    """Raise StageFailure if the digest is not the expected one.

    BASE_MODEL_DIGEST_MISMATCH if it is not that of the config or that of the parent's base model;
    BASE_MODEL_MISMATCH if the run names another base model than the parent's.
    """
    uri, expected, parent = config.base_model_uri, config.base_model_digest, config.parent
    if expected is None or expected == found.digest:
        return
    if parent is not None and config.base_model_named:
        raise StageFailure(
            FailureReason.BASE_MODEL_MISMATCH,
            f"baseModel.uri {uri}: its digest is {found.digest}, but champion {parent.name} was trained from"
            f" {expected}; create a FineTuneJob without baseModel.uri to continue from the champion, or"
            " without baseModel.champion to start from this base model",
        )
    if parent is not None:
        raise StageFailure(
            FailureReason.BASE_MODEL_DIGEST_MISMATCH,
            f"baseModel {uri}: its digest is {found.digest}, but Checkpoint {parent.name} was trained from"
            f" {expected}, which the store no longer has; restore the files, or create a FineTuneJob with"
            " baseModel.uri that starts from the new files",
        )
    raise StageFailure(
        FailureReason.BASE_MODEL_DIGEST_MISMATCH,
        f"baseModel {uri}: its digest is {found.digest}, but spec.baseModel.digest requires {expected};"
        " restore the files, or create a FineTuneJob with the new digest",
    )


def store_model(
    uri: str, model: LocalModel, manifest: Manifest, context: StageContext, meter: StageMeter
) -> None:
    """Store the model unless the store already has it. Downloads are linked or moved, other files copied.

    Counts the bytes on `meter` twice: when they are copied, and when the store publishes them.
    Raises StageFailure: BASE_MODEL_INVALID if the files change meanwhile; STORE_UNAVAILABLE. Raises OSError
    about the source, Preempted.
    """
    ref = ArtifactRef(kind="models", digest=manifest.digest)
    if context.store.has(ref):
        meter.begin("the store already has this base model")
        meter.add(2 * manifest.total_bytes)
    else:
        meter.begin("copying the base model into the store")
        with context.store.staging() as staging:
            for file in manifest.files:
                _copy(model, file, staging, meter)
            meter.begin("verifying and publishing the base model")
            if context.store.publish("models", staging, meter.add) != manifest.digest:
                raise invalid(
                    uri,
                    "its files changed while they were copied; repeat the run when nothing writes to them",
                )
    if model.source is not None:
        context.store.remember_model(model.source, ref)


def _copy(model: LocalModel, file: FileEntry, staging: Path, meter: StageMeter) -> None:
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
    """Hard-link a file, so that a stopped pod loses nothing of the download.

    If the file system has no hard links, move the file: the next pod downloads that file again.
    """
    try:
        os.link(source, target)
    except OSError:
        shutil.move(source, target)
