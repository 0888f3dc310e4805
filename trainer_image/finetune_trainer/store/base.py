"""What every store can do, and what all of them do in the same way."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

from pydantic import ValidationError

from finetune_trainer.contract.base import CONTRACT_VERSION, CONTRACT_VERSIONS, Digest
from finetune_trainer.contract.outcomes import FailureReason
from finetune_trainer.contract.references import ArtifactRef
from finetune_trainer.contract.results import StageResult
from finetune_trainer.contract.vocabulary import Stage
from finetune_trainer.manifest import MANIFEST_NAME, FileEntry, Manifest, OnBytes, digest_of, ignore_bytes
from finetune_trainer.runtime.failure import StageFailure
from finetune_trainer.store.failures import Mount, corrupt

ArtifactKind = Literal["datasets", "models", "checkpoints"]

STAGING: Final = ".staging"
STALE_STAGING_SECONDS: Final = 7 * 24 * 3600
"""What was begun longer ago than this belonged to a pod that was killed; no stage takes a week to publish."""
RESULT_NAME: Final = "result.json"
NEWER_RESULT_NAME: Final = "result-2.json"
"""Beside it, where contract 1 does not know all of the result."""
SOURCES: Final = "models/by-source"
DOWNLOADS: Final = "downloads"
"""A file for each place outside that a base model was downloaded from: which artifact it became."""

logger = logging.getLogger(__name__)


class RunFolder(ABC):
    """The folder of one stage of a run. Names are relative, with `/`.

    Small files are read and written whole. Larger ones, and folders, are written below `path` and then kept;
    in a bucket that goes on beside the caller, and leaving the block waits for it.
    """

    def __init__(self, uri: str, path: Path) -> None:
        self.uri = uri
        """For messages."""
        self.path = path
        """Where the stage writes, on a file system of the pod."""

    @property
    def mount(self) -> Mount:
        """`path` as messages name it."""
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
        """The path of `name`, to be written in the block; an OSError in it becomes a StageFailure."""

    @abstractmethod
    def read(self, name: str) -> bytes | None:
        """A file's content, or None where there is none. Raises StageFailure (STORE_UNAVAILABLE)."""

    @abstractmethod
    def write(self, name: str, content: bytes) -> None:
        """Write a file; a reader sees the old content or the new. Raises StageFailure (STORE_UNAVAILABLE)."""

    @abstractmethod
    def note(self, name: str, content: bytes) -> None:
        """Write a small file that nothing depends on; never raises, and never waits for a bucket.

        There a note is left out while the one before is on its way, and may be lost with the pod.
        """

    @abstractmethod
    def names(self, parent: str) -> set[str]:
        """Names of the folders in the folder `parent`. Raises StageFailure (STORE_UNAVAILABLE)."""

    @abstractmethod
    def load(self, name: str) -> Path:
        """The path of a folder, with as much in it as the store has; nothing is verified.

        Raises StageFailure (STORE_UNAVAILABLE), Preempted.
        """

    @abstractmethod
    def keep(self, name: str) -> None:
        """Keep a file or folder that is written completely; a folder counts once its manifest is there.

        Raises StageFailure (STORE_UNAVAILABLE), also about what was to be kept before.
        """

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file or folder, if it is there. Raises StageFailure (STORE_UNAVAILABLE)."""


class Store(ABC):
    """Artifacts and run folders below one uri."""

    def __init__(self, uri: str) -> None:
        self._uri = uri.rstrip("/")

    def uri(self, ref: ArtifactRef) -> str:
        """The artifact's address for records, such as `pvc://artifacts/datasets/1a2b…`."""
        return f"{self._uri}/{key_of(ref)}"

    def has(self, ref: ArtifactRef) -> bool:
        """Whether the artifact is there and complete. Raises StageFailure (STORE_UNAVAILABLE)."""
        return self._read_manifest(ref) is not None

    def manifest(self, ref: ArtifactRef) -> Manifest:
        """The artifact's list of files, itself checked against the digest. Raises as `artifact`."""
        content = self._read_manifest(ref)
        if content is None:
            raise StageFailure(
                FailureReason.ARTIFACT_NOT_FOUND,
                f"the store has no complete {self.uri(ref)}: it was deleted, or made in another store;"
                " check spec.store, or run again the resource that makes it",
            )
        place = f"{self._place(ref)}/{MANIFEST_NAME}"
        if digest_of(content) != ref.digest:
            raise corrupt(place, f"its digest is {digest_of(content)}")
        try:
            return Manifest.model_validate_json(content)
        except ValidationError as error:
            raise corrupt(place, f"it is no manifest: {error}") from error

    @abstractmethod
    def artifact(self, ref: ArtifactRef, *, verify: bool = False) -> Path:
        """The folder of a complete artifact; with `verify` the size and hash of each file are checked.

        An artifact in a bucket is downloaded once a pod, and then always verified.
        Raises StageFailure: ARTIFACT_NOT_FOUND, ARTIFACT_CORRUPT naming the file, STORE_UNAVAILABLE;
        Preempted.
        """

    @abstractmethod
    def chunks(self, ref: ArtifactRef, entry: FileEntry) -> Iterator[bytes]:
        """The content of an artifact's file, not verified.

        Raises StageFailure: ARTIFACT_CORRUPT where the file is missing, STORE_UNAVAILABLE; Preempted.
        """

    @abstractmethod
    def staging(self) -> AbstractContextManager[Path]:
        """An empty folder, removed at the end unless it was published.

        Raises StageFailure, also for an OSError inside the block that is about this folder.
        """

    @abstractmethod
    def publish(self, kind: ArtifactKind, staging: Path, on_bytes: OnBytes = ignore_bytes) -> Digest:
        """Make a staging folder an artifact; its content decides its name.

        Equal content that is already there is kept; an incomplete leftover is replaced. `on_bytes` gets the
        size of the files bit by bit, and may end it by raising.
        Raises StageFailure (STORE_UNAVAILABLE).
        """

    @abstractmethod
    def delete(self, ref: ArtifactRef) -> None:
        """Remove an artifact if it is there; its manifest goes first, so that no part of it ever counts.

        Raises StageFailure (STORE_UNAVAILABLE).
        """

    @abstractmethod
    def delete_run(self, run: str) -> None:
        """Remove the folders of all stages of a run, if there are any.

        Raises StageFailure (STORE_UNAVAILABLE, INVALID_CONFIG).
        """

    @abstractmethod
    def run_folder(self, run: str, stage: str) -> RunFolder:
        """The folder of one stage of a run. Raises StageFailure (STORE_UNAVAILABLE)."""

    def write_result(self, result: StageResult) -> None:
        """Keep a stage's result as the last thing of it, so that trainers of both contracts can read it.

        What only the newer contract knows is in a file beside it.
        Raises StageFailure (STORE_UNAVAILABLE).
        """
        folder = self.run_folder(result.run, result.stage)
        older, newer = _stored(result, min(CONTRACT_VERSIONS)), _stored(result, CONTRACT_VERSION)
        if older.to_dict() | {"contract": newer.contract} != newer.to_dict():
            folder.write(NEWER_RESULT_NAME, newer.to_json().encode())
        folder.write(RESULT_NAME, older.to_json().encode())

    def read_result(self, run: str, stage: Stage) -> StageResult | None:
        """A stage's result, or None where it has none that this version can read.

        Raises StageFailure (STORE_UNAVAILABLE).
        """
        key = f"{run_key(run, stage)}/{RESULT_NAME}"
        content = self._read(key)
        if content is None:
            return None
        result = StageResult.parse(content.decode(errors="replace"))
        if result is None:
            logger.warning("%s/%s was written by another version and is not used", self._uri, key)
            return None
        beside = self._read(f"{run_key(run, stage)}/{NEWER_RESULT_NAME}")
        newer = StageResult.parse(beside.decode(errors="replace")) if beside is not None else None
        # Not that of an earlier attempt, after which a trainer of the older contract succeeded.
        is_same = newer is not None and _stored(newer, 1).to_dict() == _stored(result, 1).to_dict()
        return _stored(newer if newer is not None and is_same else result, CONTRACT_VERSION)

    def model_from(self, source: str) -> ArtifactRef | None:
        """The complete model that came from a source, or None where none did; `source` is a file name.

        Raises StageFailure (STORE_UNAVAILABLE).
        """
        content = self._read(f"{SOURCES}/{source}")
        if content is None:
            return None
        try:
            ref = ArtifactRef.model_validate_json(content)
        except ValidationError:
            logger.warning("%s/%s/%s is damaged and not used", self._uri, SOURCES, source)
            return None
        return ref if self.has(ref) else None

    def remember_model(self, source: str, ref: ArtifactRef) -> None:
        """Note where a model came from, so that nobody downloads it again.

        Raises StageFailure (STORE_UNAVAILABLE).
        """
        self._write(f"{SOURCES}/{source}", ref.to_json().encode())

    def read_download_note(self, source: str) -> bytes | None:
        """What was noted last about a download from a source. Raises StageFailure (STORE_UNAVAILABLE)."""
        return self._read(f"{DOWNLOADS}/{source}")

    def write_download_note(self, source: str, content: bytes) -> None:
        """Note who downloads a model from a source. Raises StageFailure (STORE_UNAVAILABLE)."""
        self._write(f"{DOWNLOADS}/{source}", content)

    def _read_manifest(self, ref: ArtifactRef) -> bytes | None:
        """The content of an artifact's manifest, or None where there is none."""
        return self._read(f"{key_of(ref)}/{MANIFEST_NAME}")

    @abstractmethod
    def _read(self, key: str) -> bytes | None:
        """A small file's content, or None where there is none."""

    @abstractmethod
    def _write(self, key: str, content: bytes) -> None:
        """Write a small file; a reader sees the old content or the new."""

    @abstractmethod
    def _place(self, ref: ArtifactRef) -> str:
        """Where an artifact is, as a person who repairs the store would look for it."""


def key_of(ref: ArtifactRef) -> str:
    """An artifact's folder, relative to the store."""
    return f"{ref.kind}/{ref.digest.removeprefix('sha256:')}"


def run_key(run: str, *stage: str) -> str:
    """A run's or stage's folder, relative to the store. Raises StageFailure (INVALID_CONFIG)."""
    for field, value in zip(("run", "stage"), (run, *stage), strict=False):
        if value in ("", ".", "..") or "/" in value or "\0" in value:
            raise StageFailure(FailureReason.INVALID_CONFIG, f"{field}: {value!r} is no folder name")
    return "/".join(("runs", run, *stage))


def _stored(result: StageResult, contract: int) -> StageResult:
    """The result in a version of the contract, without what binds a message to its Job."""
    return result.model_copy(update={"contract": contract, "nonce": None, "config_digest": None})
