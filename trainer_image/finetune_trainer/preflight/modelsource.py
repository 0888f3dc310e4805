# SPDX-License-Identifier: Apache-2.0
"""Files of the base model, on a volume of this pod, in the store, or downloaded."""

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from finetune_trainer.beneath import OpenDirectory, kind_of, names_in, require_all_beneath, root_of
from finetune_trainer.contract.configs import PreflightConfig
from finetune_trainer.contract.environment import BASE_MODEL_MOUNT
from finetune_trainer.contract.references import ArtifactRef, ParentCheckpoint
from finetune_trainer.contract.serving import DownloadConfig
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.preflight.modelfiles import absent, choose_files, metadata_files
from finetune_trainer.remote.remote_folder import MAX_MODEL_BYTES
from finetune_trainer.remote.source import RemoteSource, SourceRequest
from finetune_trainer.runtime.failure import StageFailure
from finetune_trainer.stage.context import StageContext
from finetune_trainer.stage.meter import StageMeter
from finetune_trainer.store.download_lock import download_lock

ModelConfig = PreflightConfig | DownloadConfig
"""Config that names a base model by its source."""
DOWNLOAD: Final = "base-model"
"""Folder in the run's folder. If a pod is stopped, the next pod resumes the download from it."""
MEBIBYTE: Final = 1 << 20

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A base model whose files this pod can read."""

    folder: Path
    stored: ArtifactRef | None = None
    """Artifact of the folder, if it is in the store."""
    revision: str | None = None
    """Commit of a model at the hub."""
    source: str | None = None
    """Key by which the store remembers a downloaded model."""


@contextmanager
def readable_model(config: ModelConfig, context: StageContext) -> Iterator[LocalModel]:
    """The config's base model until the block ends, downloaded unless the store has it.

    The store keeps the base model of a parent since the parent's training. A base model that the run names
    in addition to the parent is read from its source.

    Raises StageFailure: BASE_MODEL_NOT_FOUND, BASE_MODEL_INVALID, STORE_UNAVAILABLE, and for a remote model
    whatever `RemoteSource` raises; Preempted, OSError.
    """
    if config.base_model_path is not None:
        folder = Path(config.base_model_path)
        with _on_volume(folder, root_of(folder, BASE_MODEL_MOUNT), config.base_model_uri) as opened:
            yield LocalModel(opened)
        return
    uri = config.base_model_uri
    if config.parent is not None and config.base_model_digest is not None and not config.base_model_named:
        stored = ArtifactRef(kind="models", digest=config.base_model_digest)
        if context.store.has(stored):
            yield LocalModel(context.store.artifact(stored), stored, config.base_model_revision)
            return
        _check_remote(uri, config.parent, context.store.uri(stored))
    remote = RemoteSource(
        SourceRequest(
            uri=uri,
            field="baseModel",
            credentials=config.base_model_credentials,
            absent=FailureReason.BASE_MODEL_NOT_FOUND,
            limit_bytes=MAX_MODEL_BYTES,
            revision=config.base_model_revision,
        ),
        context.stop,
    )
    with _download_lock(remote.key, config, context) as stored_model:
        if stored_model is None:
            with _downloaded(remote, config, context) as model:
                yield model
            return
    logger.info("the store already has %s", uri)
    yield LocalModel(context.store.artifact(stored_model), stored_model, remote.revision)


def _download_lock(
    source: str | None, config: ModelConfig, context: StageContext
) -> AbstractContextManager[ArtifactRef | None]:
    """Wait for other downloads of the model from this source, if the store remembers models by it."""
    if source is None:
        return nullcontext()
    find = partial(context.store.model_from, source)
    return download_lock(source, config.run, find, context.store, context.stop)


@contextmanager
def _on_volume(folder: Path, root: Path, uri: str) -> Iterator[Path]:
    """Open the model's files on a volume that the user fills, because the libraries only accept paths."""
    if kind_of(folder, root) != "Folder":
        raise absent(uri)
    names = names_in(folder, root, with_folders=False)
    metadata = metadata_files(set(names))
    with OpenDirectory(folder, root) as opened:
        opened.add(metadata)
        opened.add(set(choose_files(opened.path, uri, set(names))) - metadata)
        yield opened.path


@contextmanager
def _downloaded(remote: RemoteSource, config: ModelConfig, context: StageContext) -> Iterator[LocalModel]:
    """Download the model into the run's folder. Remove it when the block succeeds or rejects the model."""
    with context.store.run_folder(config.run, config.stage) as run_folder:
        with run_folder.writable(DOWNLOAD) as target:
            _download(remote, config.base_model_uri, target, context)
            # Other pods write to the store, too.
            require_all_beneath(target, target)
        try:
            yield LocalModel(target, None, remote.revision, remote.key)
        except StageFailure:
            run_folder.remove(DOWNLOAD)
            raise
        run_folder.remove(DOWNLOAD)


def _check_remote(uri: str, parent: ParentCheckpoint, stored_uri: str) -> None:
    """Raise StageFailure (BASE_MODEL_NOT_FOUND) for a model on a claim, which this pod cannot download."""
    if uri.startswith("pvc://"):
        raise StageFailure(
            FailureReason.BASE_MODEL_NOT_FOUND,
            f"baseModel: the store no longer has {stored_uri}, the base model of Checkpoint"
            f" {parent.name}; create a FineTuneJob with baseModel.uri {uri}, whose preflight stores it again,"
            " then create this run again",
        )


def _download(remote: RemoteSource, uri: str, target: Path, context: StageContext) -> None:
    """Download the metadata first, because it names the files with weights."""
    remote_files = {file.name: file for file in remote.files}
    remote.download([remote_files[name] for name in sorted(metadata_files(set(remote_files)))], target)
    chosen = [remote_files[name] for name in choose_files(target, uri, set(remote_files))]
    meter = StageMeter(context, sum(file.size_bytes or 0 for file in chosen), MEBIBYTE)
    meter.begin(f"downloading {uri}")
    remote.download(chosen, target, meter.add)
