# SPDX-License-Identifier: Apache-2.0
"""The base model: its files are chosen at their source, downloaded if remote, and put into the store.

The files are on a volume of this pod, in the store, or at a remote source. The store has the model once for
all runs that use it, and also for an endpoint that serves it without any run.

`open_model` gives access to the files without weights, which suffice to judge the run. `store_model` then
puts the whole model into the store. Only it downloads weights.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
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
from finetune_trainer.disk_space import require_space
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


def _check_complete(folder: Path, names: Iterable[str], uri: str) -> None:
    """Raise StageFailure (BASE_MODEL_INVALID) unless the weights are complete safetensors files; OSError."""
    for name in names:
        if not name.endswith(".safetensors"):
            continue
        try:
            with safe_open(folder / name, framework="pt") as file:
                file.keys()
        except SafetensorError as error:
            raise invalid_model_failure(
                uri, f"{name} is damaged ({error}); download the model again"
            ) from error


ModelConfig = PreflightConfig | DownloadConfig
"""Config that names a base model by its source."""
DOWNLOAD: Final = "base-model"
"""Folder in the run's folder. If a pod is stopped, the next pod resumes the download from it."""
RESUMABLE: Final = frozenset(
    {FailureReason.ACCESS_DENIED, FailureReason.SOURCE_UNAVAILABLE, FailureReason.STORE_UNAVAILABLE}
)
"""Failures that say nothing about the model: a later pod resumes its download."""
MEBIBYTE: Final = 1 << 20

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OpenModel:
    """A base model whose files without weights this pod can read."""

    folder: Path
    """Folder with these files. It has the weights too, unless `remote` has them."""
    files: tuple[str, ...]
    """Names of all files of the model, sorted."""
    size_bytes: int
    """Total size of these files."""
    stored: ArtifactRef | None = None
    """Artifact of the folder, if it is in the store."""
    revision: str | None = None
    """Commit of a model at the hub."""
    remote: RemoteSource | None = None
    """Source of the weights, if they are not downloaded."""

    @property
    def work(self) -> int:
        """Bytes that `store_model` counts: each is downloaded if remote, hashed, copied, and published."""
        if self.stored is not None:
            return 0
        return self.size_bytes * (3 if self.remote is None else 4)


@contextmanager
def open_model(config: ModelConfig, context: StageContext) -> Iterator[OpenModel]:
    """The config's base model until the block ends, without weights unless they are at hand.

    The store keeps the base model of a parent since the parent's training. A base model that the run names
    in addition to the parent is read from its source.

    Raises StageFailure: BASE_MODEL_NOT_FOUND, BASE_MODEL_INVALID, STORE_UNAVAILABLE, and for a remote model
    whatever `RemoteSource` raises; Preempted.
    """
    uri = config.base_model_uri
    if config.base_model_path is not None:
        folder = Path(config.base_model_path)
        with _on_volume(folder, root_of(folder, BASE_MODEL_MOUNT), uri) as model:
            yield model
        return
    if config.parent is not None and config.base_model_digest is not None and not config.base_model_named:
        stored = ArtifactRef(kind="models", digest=config.base_model_digest)
        if context.store.has(stored):
            yield _in_store(stored, config.base_model_revision, context)
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
    known = None if remote.key is None else context.store.model_from(remote.key)
    if known is not None:
        logger.info("the store already has %s", uri)
        yield _in_store(known, remote.revision, context)
        return
    with _at_source(remote, config, context) as model:
        yield model


def _in_store(stored: ArtifactRef, revision: str | None, context: StageContext) -> OpenModel:
    manifest = context.store.manifest(stored)
    files = tuple(entry.path for entry in manifest.files)
    return OpenModel(context.store.artifact(stored), files, manifest.total_bytes, stored, revision)


@contextmanager
def _on_volume(folder: Path, root: Path, uri: str) -> Iterator[OpenModel]:
    """Open the model's files on a volume that the user fills, because the libraries only accept paths."""
    with ExitStack() as stack:
        with convert_file_errors(uri):
            if kind_of(folder, root) != "Folder":
                raise missing_model_failure(uri)
            names = set(names_in(folder, root, with_folders=False))
            opened = stack.enter_context(OpenDirectory(folder, root))
            opened.add(metadata := metadata_files(names))
            files = choose_files(opened.path, uri, names)
            opened.add(set(files) - metadata)
            _check_complete(opened.path, files, uri)
            size = sum((opened.path / name).stat().st_size for name in files)
        yield OpenModel(opened.path, files, size)


@contextmanager
def _at_source(remote: RemoteSource, config: ModelConfig, context: StageContext) -> Iterator[OpenModel]:
    """Download the files without weights into the run's folder.

    Remove them, and what `store_model` adds, when the block ends, unless another pod can resume the download.
    """
    uri = config.base_model_uri
    listed = {file.name: file for file in remote.files}
    with context.store.run_folder(config.run, config.stage) as run_folder:
        with run_folder.writable(DOWNLOAD) as target:
            remote.download([listed[name] for name in sorted(metadata_files(set(listed)))], target)
            # Other pods write to the store, too.
            require_all_beneath(target, target)
        try:
            with convert_file_errors(uri):
                files = choose_files(target, uri, set(listed))
            size = sum(listed[name].size_bytes or 0 for name in files)
            yield OpenModel(target, files, size, revision=remote.revision, remote=remote)
        except StageFailure as failure:
            if failure.reason not in RESUMABLE:
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


def store_model(model: OpenModel, config: ModelConfig, context: StageContext, meter: StageMeter) -> Manifest:
    """Store the whole model unless the store already has it. Counts `model.work` on `meter`.

    If several pods need the same model, one downloads it. Downloads are linked or moved, other files copied.

    Raises StageFailure: BASE_MODEL_INVALID for incomplete weights or if files change meanwhile,
    BASE_MODEL_DIGEST_MISMATCH, BASE_MODEL_MISMATCH, STORE_UNAVAILABLE, also if the store has too little free
    space, which is judged before weights are downloaded, and for a remote model whatever `RemoteSource`
    raises; Preempted.
    """
    if model.stored is not None:
        manifest = context.store.manifest(model.stored)
        require_digest(config, manifest)
        return manifest
    if model.remote is None:
        return _store_files(model, config, context, meter)
    with _download_lock(model.remote.key, config, context) as found:
        if found is None:
            _download_weights(model, model.remote, config, context, meter)
            return _store_files(model, config, context, meter)
    logger.info("another run has stored %s", config.base_model_uri)
    meter.add(model.work)
    manifest = context.store.manifest(found)
    require_digest(config, manifest)
    return manifest


def _download_lock(
    source: str | None, config: ModelConfig, context: StageContext
) -> AbstractContextManager[ArtifactRef | None]:
    """Wait for other downloads of the model from this source, if the store remembers models by it."""
    if source is None:
        return nullcontext()
    find = partial(context.store.model_from, source)
    return download_lock(source, config.run, find, context.store, context.stop)


def _download_weights(
    model: OpenModel, remote: RemoteSource, config: ModelConfig, context: StageContext, meter: StageMeter
) -> None:
    meter.begin(f"downloading {config.base_model_uri}")
    files = [file for file in remote.files if file.name in model.files]
    with (
        context.store.run_folder(config.run, config.stage) as run_folder,
        run_folder.writable(DOWNLOAD) as target,
    ):
        remote.download(files, target, meter.add)
        require_all_beneath(target, target)
    with convert_file_errors(config.base_model_uri):
        _check_complete(model.folder, model.files, config.base_model_uri)


CHUNK_BYTES: Final = 1 << 20


def require_digest(config: ModelConfig, found: Manifest) -> None:
    """Raise StageFailure if the digest is not the expected one.

    BASE_MODEL_DIGEST_MISMATCH if it is not that of the config or that of the parent's base model;
    BASE_MODEL_MISMATCH if the run names another base model than the parent's.
    """
    uri, expected = config.base_model_uri, config.base_model_digest
    if expected is None or expected == found.digest:
        return
    if config.parent is not None and config.base_model_named:
        raise StageFailure(
            FailureReason.BASE_MODEL_MISMATCH,
            f"baseModel.uri {uri}: its digest is {found.digest}, but champion {config.parent.name} was"
            f" trained from {expected}; create a FineTuneJob without baseModel.uri to continue from the"
            " champion, or without baseModel.champion to start from this base model",
        )
    if config.parent is not None:
        raise StageFailure(
            FailureReason.BASE_MODEL_DIGEST_MISMATCH,
            f"baseModel {uri}: its digest is {found.digest}, but Checkpoint {config.parent.name} was trained"
            f" from {expected}, which the store no longer has; restore the files, or create a FineTuneJob"
            " with baseModel.uri that starts from the new files",
        )
    raise StageFailure(
        FailureReason.BASE_MODEL_DIGEST_MISMATCH,
        f"baseModel {uri}: its digest is {found.digest}, but spec.baseModel.digest requires {expected};"
        f" restore the files, or {_new_digest(config)}",
    )


def _new_digest(config: ModelConfig) -> str:
    """How to accept the digest of the present files."""
    if isinstance(config, DownloadConfig):
        return "set the new digest"
    return "create a FineTuneJob with the new digest"


def _store_files(model: OpenModel, config: ModelConfig, context: StageContext, meter: StageMeter) -> Manifest:
    """Hash all files of the model, and publish them unless the store already has these."""
    uri = config.base_model_uri
    with convert_file_errors(uri):
        meter.begin("hashing the base model")
        manifest = Manifest.of(model.folder, model.files, meter.add)
        require_digest(config, manifest)
        ref = ArtifactRef(kind="models", digest=manifest.digest)
        if context.store.has(ref):
            meter.begin("the store already has this base model")
            meter.add(2 * manifest.total_bytes)
        else:
            _publish(uri, model, manifest, context, meter)
    if model.remote is not None and model.remote.key is not None:
        context.store.remember_model(model.remote.key, ref)
    return manifest


def _publish(
    uri: str, model: OpenModel, manifest: Manifest, context: StageContext, meter: StageMeter
) -> None:
    """Publish the files. Counts each byte when it is copied, and when the store publishes it."""
    meter.begin("copying the base model into the store")
    with context.store.staging() as staging:
        if model.remote is None:
            require_space(staging, manifest.total_bytes, f"baseModel {uri}")
        for file in manifest.files:
            _copy(model, file, staging, meter)
        meter.begin("verifying and publishing the base model")
        if context.store.publish("models", staging, meter.add) != manifest.digest:
            raise invalid_model_failure(
                uri,
                "its files changed while they were copied; repeat the run when nothing writes to them",
            )


def _copy(model: OpenModel, file: FileEntry, staging: Path, meter: StageMeter) -> None:
    source, target = model.folder / file.path, staging / file.path
    if model.remote is not None:
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
    expected = config.base_model_digest
    store = open_store(config.store)
    if expected is not None and store.has(ArtifactRef(kind="models", digest=expected)):
        logger.info("the store has the base model %s", expected)
        return StoredModel(digest=expected)
    # The reporter has no target: an endpoint shows no progress of its Jobs.
    context = StageContext(store, Reporter(None, config.owner, "preflight"), Stop())
    with open_model(config, context) as model:
        manifest = store_model(model, config, context, StageMeter(context, model.work, MEBIBYTE))
    return StoredModel(digest=manifest.digest)
