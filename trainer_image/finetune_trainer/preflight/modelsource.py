"""The base model's files, where this pod can read them: on a volume, in the store already, or downloaded."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from finetune_trainer.beneath import OpenDirectory, kind_of, names_in, require_all_beneath, root_of
from finetune_trainer.contract.configs.preflight import PreflightConfig
from finetune_trainer.contract.environment import BASE_MODEL_MOUNT
from finetune_trainer.contract.outcomes import FailureReason
from finetune_trainer.contract.references import ArtifactRef, ParentCheckpoint
from finetune_trainer.preflight.downloadlock import download_lock
from finetune_trainer.preflight.modelfiles import absent, choose_files, described_by
from finetune_trainer.remote.limits import MAX_MODEL_BYTES
from finetune_trainer.remote.source import RemoteSource, SourceRequest
from finetune_trainer.runtime.failure import StageFailure
from finetune_trainer.stage.context import StageContext
from finetune_trainer.stage.meter import StageMeter

DOWNLOAD: Final = "base-model"
"""Folder in the run's folder; what is left there by a pod that was stopped, the next one goes on with."""
MEBIBYTE: Final = 1 << 20

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LocalModel:
    """Where the model's files are."""

    folder: Path
    stored: ArtifactRef | None = None
    """The artifact that the folder is, where the store has it."""
    revision: str | None = None
    """The commit, of a model at the hub."""
    source: str | None = None
    """What the store remembers a downloaded model by."""


@contextmanager
def readable_model(config: PreflightConfig, context: StageContext) -> Iterator[LocalModel]:
    """The config's base model, for as long as the block lasts; downloaded unless the store has it.

    That of a parent is in the store, where its training has left it.

    Raises StageFailure: BASE_MODEL_NOT_FOUND, BASE_MODEL_INVALID, STORE_UNAVAILABLE, and of a remote model
    all that `RemoteSource` raises; Preempted, OSError.
    """
    if config.base_model_path is not None:
        folder = Path(config.base_model_path)
        with _on_volume(folder, root_of(folder, BASE_MODEL_MOUNT), config.base_model_uri) as here:
            yield LocalModel(here)
        return
    uri = config.base_model_uri
    if config.parent is not None and config.base_model_digest is not None:
        kept = ArtifactRef(kind="models", digest=config.base_model_digest)
        if context.store.has(kept):
            yield LocalModel(context.store.artifact(kept), kept, config.base_model_revision)
            return
        _check_remote(uri, config.parent, context.store.uri(kept))
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
    turn = nullcontext() if remote.key is None else download_lock(remote.key, config.run, context)
    with turn as known:
        if known is None:
            with _downloaded(remote, config, context) as model:
                yield model
            return
    logger.info("the store has %s already", uri)
    yield LocalModel(context.store.artifact(known), known, remote.revision)


@contextmanager
def _on_volume(folder: Path, root: Path, uri: str) -> Iterator[Path]:
    """The model's files on a volume that the user fills, opened once: the libraries below take paths."""
    if kind_of(folder, root) != "Folder":
        raise absent(uri)
    names = names_in(folder, root, with_folders=False)
    described = described_by(set(names))
    with OpenDirectory(folder, root) as held:
        held.add(described)
        held.add(set(choose_files(held.path, uri, set(names))) - described)
        yield held.path


@contextmanager
def _downloaded(remote: RemoteSource, config: PreflightConfig, context: StageContext) -> Iterator[LocalModel]:
    """Kept in the run's folder until the block has ended well, or the model turned out to be of no use."""
    with context.store.run_folder(config.run, config.stage) as run_folder:
        with run_folder.writable(DOWNLOAD) as here:
            _download(remote, config.base_model_uri, here, context)
            # The store is written to by others too.
            require_all_beneath(here, here)
        try:
            yield LocalModel(here, None, remote.revision, remote.key)
        except StageFailure:
            run_folder.remove(DOWNLOAD)
            raise
        run_folder.remove(DOWNLOAD)


def _check_remote(uri: str, parent: ParentCheckpoint, kept: str) -> None:
    """Raises StageFailure (BASE_MODEL_NOT_FOUND) for a model that this pod cannot fetch: one on a claim."""
    if uri.startswith("pvc://"):
        raise StageFailure(
            FailureReason.BASE_MODEL_NOT_FOUND,
            f"baseModel.checkpoint: the store has no {kept} any more, the base model of Checkpoint"
            f" {parent.name}: make a FineTuneJob with baseModel.uri {uri}, whose preflight brings it back,"
            " then make this one again",
        )


def _download(remote: RemoteSource, uri: str, here: Path, context: StageContext) -> None:
    """First what describes the model, because that says which files of weights belong to it."""
    there = {file.name: file for file in remote.files}
    remote.download([there[name] for name in sorted(described_by(set(there)))], here)
    chosen = [there[name] for name in choose_files(here, uri, set(there))]
    meter = StageMeter(context, sum(file.size_bytes or 0 for file in chosen), MEBIBYTE)
    meter.begin(f"downloading {uri}")
    remote.download(chosen, here, meter.add)
