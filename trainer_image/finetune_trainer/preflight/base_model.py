# SPDX-License-Identifier: Apache-2.0
"""The base model: its files are chosen at their source, downloaded if remote, and put into the store.

The files are on a volume of this pod, in the store, or at a remote source. The store has the model once for
all runs that use it, and also for an endpoint that serves it without any run.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from safetensors import SafetensorError, safe_open

from finetune_trainer.contract.configs import PreflightConfig
from finetune_trainer.contract.environment import BASE_MODEL_MOUNT
from finetune_trainer.contract.references import ArtifactRef, ParentCheckpoint
from finetune_trainer.contract.serving import DownloadConfig, StoredModel
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.manifest import FileEntry, Manifest
from finetune_trainer.model.bundle import (
    ADAPTER_CONFIG,
    CHAT_TEMPLATE,
    GENERATION_CONFIG,
    MODEL_CONFIG,
    PROCESSOR_FILES,
    TOKENIZER,
    TOKENIZER_FILES,
)
from finetune_trainer.remote.remote_folder import MAX_MODEL_BYTES
from finetune_trainer.remote.source import RemoteSource, SourceRequest
from finetune_trainer.rooted_open import (
    OpenDirectory,
    PathRefused,
    kind_of,
    names_in,
    require_all_beneath,
    root_of,
)
from finetune_trainer.runtime.progress import Reporter
from finetune_trainer.runtime.signals import Stop
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.stage.context import StageContext, StageMeter
from finetune_trainer.store import open_store
from finetune_trainer.store.download_lock import download_lock

INDEX: Final = "model.safetensors.index.json"
SINGLE: Final = "model.safetensors"
REQUIRED: Final = (MODEL_CONFIG, TOKENIZER)
OPTIONAL: Final = (
    *TOKENIZER_FILES,
    *PROCESSOR_FILES,
    GENERATION_CONFIG,
    CHAT_TEMPLATE,
    "chat_template.json",
    "README.md",
)
"""Copied if present. Subfolders and other formats of the weights are not copied."""
LICENSE_NAMES: Final = ("license", "licence", "notice", "use_policy")
PICKLED: Final = (".bin", ".pt", ".pth", ".ckpt")


def invalid_model_failure(uri: str, what: str) -> StageFailure:
    """Failure for a base model that cannot be trained."""
    return StageFailure(FailureReason.BASE_MODEL_INVALID, f"baseModel {uri}: {what}")


@contextmanager
def convert_file_errors(uri: str) -> Iterator[None]:
    """Raise StageFailure (BASE_MODEL_INVALID) for files of the model that cannot be read."""
    try:
        yield
    except PathRefused as refusal:
        raise invalid_model_failure(uri, str(refusal)) from refusal
    except OSError as error:
        raise invalid_model_failure(uri, f"{error}; check that uid 65532 may read the files") from error


def missing_model_failure(uri: str) -> StageFailure:
    """Failure for a base model that does not exist."""
    return StageFailure(
        FailureReason.BASE_MODEL_NOT_FOUND,
        f"baseModel {uri}: the folder does not exist; check the name of the claim and the path in it",
    )


def model_files(folder: Path, uri: str) -> tuple[str, ...]:
    """Names of the model's files in `folder`, sorted.

    Raises StageFailure: BASE_MODEL_NOT_FOUND; BASE_MODEL_INVALID if a file is missing, or the weights are not
    complete safetensors files. Raises OSError.
    """
    if not folder.is_dir():
        raise missing_model_failure(uri)
    names = choose_files(folder, uri, {path.name for path in folder.iterdir() if path.is_file()})
    for name in names:
        _check_complete(folder / name, uri)
    return names


def choose_files(folder: Path, uri: str, present: set[str]) -> tuple[str, ...]:
    """Choose the model's files among those `present` at its source, sorted.

    `folder` must have the `metadata_files`. Raises StageFailure (BASE_MODEL_INVALID), OSError.
    """
    if ADAPTER_CONFIG in present and MODEL_CONFIG not in present:
        raise invalid_model_failure(
            uri, "this is an adapter, not a complete model; name the model that it was trained on"
        )
    weights = _weights(folder, uri, present)
    for name in REQUIRED:
        if name not in present:
            raise invalid_model_failure(uri, f"{name} is missing; download the complete model again")
    return tuple(sorted({*weights, *metadata_files(present)}))


def metadata_files(present: set[str]) -> set[str]:
    """All files except the weights, including the index of the weights."""
    licenses = {name for name in present if name.lower().startswith(LICENSE_NAMES)}
    return present.intersection((*REQUIRED, *OPTIONAL, INDEX)) | licenses


def _weights(folder: Path, uri: str, present: set[str]) -> list[str]:
    if INDEX not in present:
        if SINGLE in present:
            return [SINGLE]
        pickled = sorted(name for name in present if name.endswith(PICKLED))
        if pickled:
            raise invalid_model_failure(
                uri,
                f"its weights are pickled ({pickled[0]}), and loading them could run code; convert them"
                " with transformers: AutoModelForCausalLM.from_pretrained(…).save_pretrained(…)",
            )
        if any(name.endswith(".gguf") for name in present):
            raise invalid_model_failure(
                uri, "its weights are in GGUF format, which cannot be trained; use the safetensors version"
            )
        raise invalid_model_failure(
            uri, f"it has no weights, neither {SINGLE} nor {INDEX}; download the model again"
        )
    try:
        names = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise invalid_model_failure(uri, f"{INDEX} is damaged: {error}; download the model again") from error
    missing = [name for name in names if name not in present]
    if missing or not names:
        raise invalid_model_failure(
            uri, f"files named in {INDEX} are missing: {', '.join(missing[:10])}; download the model again"
        )
    return [*names, INDEX]


def _check_complete(path: Path, uri: str) -> None:
    if path.suffix != ".safetensors":
        return
    try:
        with safe_open(path, framework="pt") as file:
            file.keys()
    except SafetensorError as error:
        raise invalid_model_failure(
            uri, f"{path.name} is damaged ({error}); download the model again"
        ) from error


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
def open_model(config: ModelConfig, context: StageContext) -> Iterator[LocalModel]:
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
        raise missing_model_failure(uri)
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
                raise invalid_model_failure(
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


def download_to_store(config: DownloadConfig) -> StoredModel:
    """Store the base model unless the store has it. If several pods need the same model, one downloads it.

    Raises StageFailure: BASE_MODEL_NOT_FOUND, BASE_MODEL_INVALID, BASE_MODEL_DIGEST_MISMATCH,
    STORE_UNAVAILABLE, and for a remote model what `RemoteSource` raises.
    """
    uri, expected = config.base_model_uri, config.base_model_digest
    store = open_store(config.store)
    if expected is not None and store.has(ArtifactRef(kind="models", digest=expected)):
        logger.info("the store has the base model %s", expected)
        return StoredModel(digest=expected)
    # The reporter has no target: an endpoint shows no progress of its Jobs.
    context = StageContext(store, Reporter(None, config.owner, "preflight"), Stop())
    with convert_file_errors(uri), open_model(config, context) as found:
        files = model_files(found.folder, uri)
        # Each byte is hashed, copied, and published by the store.
        total = 3 * sum((found.folder / name).stat().st_size for name in files)
        meter = StageMeter(context, total, MEBIBYTE)
        if found.stored is None:
            meter.begin("hashing the base model")
            manifest = Manifest.of(found.folder, files, meter.add)
        else:
            manifest = store.manifest(found.stored)
            meter.add(manifest.total_bytes)
        if expected not in {None, manifest.digest}:
            raise StageFailure(
                FailureReason.BASE_MODEL_DIGEST_MISMATCH,
                f"baseModel {uri}: its digest is {manifest.digest}, but spec.baseModel.digest requires"
                f" {expected}; restore the files, or set the new digest",
            )
        store_model(uri, found, manifest, context, meter)
    return StoredModel(digest=manifest.digest)
