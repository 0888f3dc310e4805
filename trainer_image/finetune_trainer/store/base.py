# SPDX-License-Identifier: Apache-2.0
"""Interface of all stores: artifacts, folders derived from them, folders of runs, and their keys.

Keys are relative to the store, with `/`. The module also has the code that all stores share.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Final, Literal, Self

from pydantic import ValidationError
from pydantic.dataclasses import dataclass

from finetune_trainer.contract.base import CONTRACT_VERSION, Digest
from finetune_trainer.contract.references import ArtifactRef
from finetune_trainer.contract.results import StageResult
from finetune_trainer.contract.vocabulary import FailureReason, Stage
from finetune_trainer.manifest import MANIFEST_NAME, FileEntry, Manifest, OnBytes, digest_of, ignore_bytes
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.store.failures import Mount, any_file, corruption_failure

ArtifactKind = Literal["datasets", "models", "checkpoints"]

SOURCES: Final = "models/by-source"
"""One file per source of a downloaded base model: the artifact that it became."""
DOWNLOADS: Final = "downloads"
"""One note per source of a base model: the run that is downloading it."""
DERIVED: Final = "derived"
"""Folder of an artifact for what was derived from it. The artifact's manifest does not list it."""
BY_NAME: Final = "by-name"
"""One file per name of a derived folder: its digest."""


@dataclass(frozen=True, slots=True)
class DerivedRef:
    """A complete folder that was derived from an artifact. Raises ValidationError for another digest."""

    of: ArtifactRef
    digest: Digest


StoredRef = ArtifactRef | DerivedRef
Place = ArtifactKind | ArtifactRef
"""Where to publish a folder: as an artifact of a kind, or as derived from an artifact."""


def resolve_derived(artifact: ArtifactRef, derived: Digest | None) -> StoredRef:
    """Return the reference to a folder that is derived from an artifact, or to the artifact itself."""
    return artifact if derived is None else DerivedRef(artifact, derived)


def ref_to(place: Place, digest: Digest) -> StoredRef:
    """Return the reference to a folder that is published at `place`."""
    if isinstance(place, ArtifactRef):
        return DerivedRef(place, digest)
    return ArtifactRef(kind=place, digest=digest)


def key_of(ref: StoredRef) -> str:
    """Return the folder of an artifact or of what was derived from it."""
    parent = ref.kind if isinstance(ref, ArtifactRef) else f"{key_of(ref.of)}/{DERIVED}"
    return f"{parent}/{ref.digest.removeprefix('sha256:')}"


def name_key(of: ArtifactRef, name: str) -> str:
    """Return the file with the digest of the derived folder `name`."""
    return f"{key_of(of)}/{DERIVED}/{BY_NAME}/{name}"


def run_key(run: str, *stage: str) -> str:
    """Return the folder of a run or stage. Raises StageFailure (INVALID_CONFIG)."""
    for field, value in zip(("run", "stage"), (run, *stage), strict=False):
        if value in ("", ".", "..") or "/" in value or "\0" in value:
            raise StageFailure(FailureReason.INVALID_CONFIG, f"{field}: {value!r} is not a folder name")
    return "/".join(("runs", run, *stage))


class RunFolder(ABC):
    """The folder of one stage of a run. Names are relative, with `/`.

    Small files are read and written whole. Large files, and folders, are written below `path` and then kept.
    A bucket uploads them in the background; leaving the block waits for the uploads.
    """

    def __init__(self, uri: str, path: Path) -> None:
        self.uri = uri
        """Uri of the folder, for messages."""
        self.path = path
        """Folder that the stage writes to, on a file system of the pod."""

    @property
    def mount(self) -> Mount:
        """`path`, with its name in messages."""
        return Mount(str(self.path), self.path)

    def __enter__(self) -> Self:
        return self

    @abstractmethod
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait until everything kept is in the store. Raises StageFailure (STORE_UNAVAILABLE)."""

    @abstractmethod
    def writable(self, name: str) -> AbstractContextManager[Path]:
        """Yield the path of `name` for writing. An OSError in the block becomes a StageFailure."""

    @abstractmethod
    def read(self, name: str) -> bytes | None:
        """Return the content of a file, or None without one. Raises StageFailure (STORE_UNAVAILABLE)."""

    @abstractmethod
    def write(self, name: str, content: bytes) -> None:
        """Write a file atomically: readers see the old or the new content.

        Raises StageFailure (STORE_UNAVAILABLE).
        """

    @abstractmethod
    def note(self, name: str, content: bytes) -> None:
        """Write a small file that nothing depends on. Never raises, and never waits for a bucket.

        A bucket skips a note while the previous one is uploading, and may lose one with the pod.
        """

    @abstractmethod
    def names(self, parent: str) -> set[str]:
        """Return the names of the subfolders of `parent`. Raises StageFailure (STORE_UNAVAILABLE)."""

    @abstractmethod
    def load(self, name: str, needed: Callable[[str], bool] = any_file) -> Path:
        """Return the path of a folder with those needed files of it that the store has, unverified.

        Raises StageFailure (STORE_UNAVAILABLE), Preempted.
        """

    @abstractmethod
    def keep(self, name: str) -> None:
        """Persist a file or folder that is completely written. A folder is valid once its manifest is stored.

        Raises StageFailure (STORE_UNAVAILABLE), also for files that were kept earlier.
        """

    @abstractmethod
    def part(self, name: str, session: str) -> AbstractContextManager[Path]:
        """Yield the folder for this process's files of `name`, which several processes write together.

        `session` is that of these processes. Raises StageFailure, also for an OSError in the block.
        """

    @abstractmethod
    def keep_part(self, name: str, part: Path, files: Iterable[FileEntry]) -> None:
        """Store the files that this process wrote into `part`. Raises StageFailure (STORE_UNAVAILABLE)."""

    @abstractmethod
    def complete(self, name: str, part: Path, manifest: Manifest) -> None:
        """Make the folder valid, when all files are stored. Raises StageFailure (STORE_UNAVAILABLE)."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file or folder, if it exists. Raises StageFailure (STORE_UNAVAILABLE)."""


STAGING: Final = ".staging"
STALE_STAGING_SECONDS: Final = 7 * 24 * 3600
"""Age at which a staging folder must be from a pod that was killed. No stage takes a week to publish."""
RESULT_NAME: Final = "result.json"

logger = logging.getLogger(__name__)


class Store(ABC):
    """Artifacts, folders derived from them, and run folders below one uri."""

    reads_in_place: ClassVar[bool]
    """Whether `artifact` returns the folder in the store itself, not a copy in the pod."""

    def __init__(self, uri: str) -> None:
        self._uri = uri.rstrip("/")

    def uri(self, ref: StoredRef) -> str:
        """Return the artifact's address for records, such as `pvc://artifacts/datasets/1a2b…`."""
        return f"{self._uri}/{key_of(ref)}"

    def has(self, ref: StoredRef) -> bool:
        """Return whether the store has the complete artifact. Raises StageFailure (STORE_UNAVAILABLE)."""
        return self._read_manifest(ref) is not None

    def manifest(self, ref: StoredRef) -> Manifest:
        """Return the manifest of an artifact, verified by the digest. Raises as `artifact`."""
        content = self._read_manifest(ref)
        if content is None:
            raise StageFailure(
                FailureReason.ARTIFACT_NOT_FOUND,
                f"the store has no complete {self.uri(ref)}: it was deleted, or made in another store;"
                " check spec.store, or recreate the resource that makes it",
            )
        place = f"{self._place(ref)}/{MANIFEST_NAME}"
        if digest_of(content) != ref.digest:
            raise corruption_failure(place, f"its digest is {digest_of(content)}")
        try:
            return Manifest.model_validate_json(content)
        except ValidationError as error:
            raise corruption_failure(place, f"it is not a manifest: {error}") from error

    @abstractmethod
    def artifact(self, ref: StoredRef, *, verify: bool = False) -> Path:
        """Return the folder of a complete artifact. With `verify`, checks size and hash of each file.

        An artifact in a bucket is downloaded once per pod, and then always verified.
        Raises StageFailure: ARTIFACT_NOT_FOUND, ARTIFACT_CORRUPT naming the file, STORE_UNAVAILABLE;
        Preempted.
        """

    @abstractmethod
    def chunks(self, ref: StoredRef, entry: FileEntry) -> Iterator[bytes]:
        """Yield the content of an artifact's file, unverified.

        Raises StageFailure: ARTIFACT_CORRUPT if the file is missing, STORE_UNAVAILABLE; Preempted.
        """

    @abstractmethod
    def staging(self) -> AbstractContextManager[Path]:
        """Yield an empty folder, and remove it at the end unless it was published.

        Raises StageFailure, also for an OSError of this folder inside the block.
        """

    @abstractmethod
    def publish(self, place: Place, staging: Path, on_bytes: OnBytes = ignore_bytes) -> Digest:
        """Publish a staging folder as an artifact, or as derived from one, named by its content.

        Keeps an existing folder with equal content, and replaces an incomplete one. `on_bytes` gets the
        bytes of each step, and may raise to abort.
        Raises StageFailure (STORE_UNAVAILABLE).
        """

    @abstractmethod
    def delete(self, ref: ArtifactRef) -> None:
        """Remove an artifact, if it exists, with what was derived from it.

        Its manifest goes first, so that a part of it is never valid.

        Raises StageFailure (STORE_UNAVAILABLE).
        """

    @abstractmethod
    def delete_run(self, run: str) -> None:
        """Remove the folders of all stages of a run, if any exist.

        Raises StageFailure (STORE_UNAVAILABLE, INVALID_CONFIG).
        """

    @abstractmethod
    def run_folder(self, run: str, stage: str) -> RunFolder:
        """Open the folder of one stage of a run. Raises StageFailure (STORE_UNAVAILABLE)."""

    def write_result(self, result: StageResult) -> None:
        """Store the result of a stage, as its last write. Trainers of older contracts ignore newer fields.

        Raises StageFailure (STORE_UNAVAILABLE).
        """
        folder = self.run_folder(result.run, result.stage)
        folder.write(RESULT_NAME, _stored(result).to_json().encode())

    def read_result(self, run: str, stage: Stage) -> StageResult | None:
        """Return the result of a stage, or None without a result that this version can read.

        Raises StageFailure (STORE_UNAVAILABLE).
        """
        key = f"{run_key(run, stage)}/{RESULT_NAME}"
        content = self._read(key)
        if content is None:
            return None
        result = StageResult.parse(content.decode(errors="replace"))
        if result is None:
            logger.warning("ignoring %s/%s: another version wrote it", self._uri, key)
            return None
        return _stored(result)

    def model_from(self, source: str) -> ArtifactRef | None:
        """Return the complete model that was downloaded from a source, or None. `source` is a file name.

        Raises StageFailure (STORE_UNAVAILABLE).
        """
        content = self._read(f"{SOURCES}/{source}")
        if content is None:
            return None
        try:
            ref = ArtifactRef.model_validate_json(content)
        except ValidationError:
            logger.warning("ignoring %s/%s/%s: it is damaged", self._uri, SOURCES, source)
            return None
        return ref if self.has(ref) else None

    def remember_model(self, source: str, ref: ArtifactRef) -> None:
        """Record the source of a model, so that no run downloads it again.

        Raises StageFailure (STORE_UNAVAILABLE).
        """
        self._write(f"{SOURCES}/{source}", ref.to_json().encode())

    def derived(self, of: ArtifactRef, name: str) -> DerivedRef | None:
        """Return the complete folder that was derived from an artifact under this name, or None.

        `name` is a file name. Raises StageFailure (STORE_UNAVAILABLE).
        """
        key = name_key(of, name)
        content = self._read(key)
        if content is None:
            return None
        try:
            ref = DerivedRef(of, content.decode(errors="replace"))
        except ValidationError:
            logger.warning("ignoring %s/%s: it is damaged", self._uri, key)
            return None
        return ref if self.has(ref) else None

    def name_derived(self, ref: DerivedRef, name: str) -> None:
        """Name a folder that was derived from an artifact. Raises StageFailure (STORE_UNAVAILABLE)."""
        self._write(name_key(ref.of, name), ref.digest.encode())

    def read_download_note(self, source: str) -> bytes | None:
        """Return the last note on a download from a source. Raises StageFailure (STORE_UNAVAILABLE)."""
        return self._read(f"{DOWNLOADS}/{source}")

    def write_download_note(self, source: str, content: bytes) -> None:
        """Note which run downloads a model from a source. Raises StageFailure (STORE_UNAVAILABLE)."""
        self._write(f"{DOWNLOADS}/{source}", content)

    def _read_manifest(self, ref: StoredRef) -> bytes | None:
        """Return the content of an artifact's manifest, or None if it does not exist."""
        return self._read(f"{key_of(ref)}/{MANIFEST_NAME}")

    @abstractmethod
    def _read(self, key: str) -> bytes | None:
        """Return the content of a small file, or None if it does not exist."""

    @abstractmethod
    def _write(self, key: str, content: bytes) -> None:
        """Write a small file atomically: readers see the old or the new content."""

    @abstractmethod
    def _place(self, ref: StoredRef) -> str:
        """Return the location of an artifact, for an administrator who repairs the store."""


def _stored(result: StageResult) -> StageResult:
    """Return the result in this release's contract, without the fields that bind a message to its Job."""
    return result.model_copy(update={"contract": CONTRACT_VERSION, "nonce": None, "config_digest": None})
