"""The store on a mounted file system: artifacts named by their content, and the runs' own folders.

A folder is complete when its `manifest.json` is there, and it gets its name only after that. Callers see
artifacts, digests and run folders, never the layout, so that a store behind fsspec can take its place.
"""

import errno
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Literal

from pydantic import ValidationError

from finetune_trainer import durable
from finetune_trainer.contract import (
    ArtifactRef,
    Digest,
    ExitCode,
    FailureReason,
    Stage,
    StageResult,
    StoreConfig,
)
from finetune_trainer.failure import StageFailure
from finetune_trainer.manifest import MANIFEST_NAME, Manifest, digest_of, hash_file

ArtifactKind = Literal["datasets", "models", "checkpoints"]

STAGING: Final = ".staging"
STALE_STAGING_SECONDS: Final = 7 * 24 * 3600
"""A staging folder older than this belonged to a pod that was killed; no stage takes a week to fill one."""
RESULT_NAME: Final = "result.json"

logger = logging.getLogger(__name__)


class Store:
    """Artifacts and run folders below one mounted folder."""

    def __init__(self, config: StoreConfig) -> None:
        self._root = Path(config.path)
        self._uri = config.uri.rstrip("/")

    def uri(self, ref: ArtifactRef) -> str:
        """The artifact's address for records, such as `pvc://artifacts/datasets/1a2b…`."""
        return f"{self._uri}/{ref.kind}/{_hexadecimal(ref.digest)}"

    def has(self, ref: ArtifactRef) -> bool:
        """Whether the artifact is there and complete. Raises StageFailure (STORE_UNAVAILABLE)."""
        with reachable(self._root):
            return _is_file(self._folder(ref) / MANIFEST_NAME)

    def artifact(self, ref: ArtifactRef, *, verify: bool = False) -> Path:
        """The folder of a complete artifact; with `verify` the size and hash of each file are checked.

        Raises StageFailure: ARTIFACT_NOT_FOUND, ARTIFACT_CORRUPT naming the file, STORE_UNAVAILABLE.
        """
        folder = self._folder(ref)
        manifest = self.manifest(ref)
        if verify:
            with reachable(folder):
                verify_files(folder, manifest)
        return folder

    def manifest(self, ref: ArtifactRef) -> Manifest:
        """The artifact's list of files, itself checked against the digest. Raises as `artifact`."""
        folder = self._folder(ref)
        with reachable(folder):
            if not _is_file(folder / MANIFEST_NAME):
                raise StageFailure(
                    FailureReason.ARTIFACT_NOT_FOUND,
                    f"the store has no complete {self.uri(ref)}: it was deleted, or made in another store;"
                    " check spec.store, or run again the resource that makes it",
                )
            content = (folder / MANIFEST_NAME).read_bytes()
        if digest_of(content) != ref.digest:
            raise corrupt(folder / MANIFEST_NAME, f"its digest is {digest_of(content)}")
        try:
            return Manifest.model_validate_json(content)
        except ValidationError as error:
            raise corrupt(folder / MANIFEST_NAME, f"it is no manifest: {error}") from error

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """An empty folder on the store's file system, removed at the end unless it was published.

        Raises StageFailure (STORE_UNAVAILABLE), also for an OSError inside the block that is the store's.
        """
        parent = self._root / STAGING
        with reachable(parent):
            parent.mkdir(parents=True, exist_ok=True)
            _remove_stale(parent)
            folder = parent / uuid.uuid4().hex
            folder.mkdir()
        try:
            yield folder
        except OSError as error:
            # A full disk is reported without a file name.
            if error.filename is None or Path(os.fsdecode(error.filename)).is_relative_to(self._root):
                raise unavailable(error, folder) from error
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, kind: ArtifactKind, staging: Path) -> Digest:
        """Make a staging folder an artifact; its content decides its name.

        Equal content that is already there is kept; an incomplete leftover is replaced.
        Raises StageFailure (STORE_UNAVAILABLE).
        """
        with reachable(self._root):
            manifest = Manifest.of(staging)
            durable.write_file(staging / MANIFEST_NAME, manifest.to_bytes())
            target = self._folder(ArtifactRef(kind=kind, digest=manifest.digest))
            target.parent.mkdir(parents=True, exist_ok=True)
            # Another pod may publish the same content between the look and the rename.
            while not _is_file(target / MANIFEST_NAME):
                self._discard(target)
                try:
                    durable.move_folder(staging, target)
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                        raise
        return manifest.digest

    def run_dir(self, run: str, stage: str) -> Path:
        """The folder of one stage of a run, created. Raises StageFailure (STORE_UNAVAILABLE)."""
        folder = self._root / "runs" / _component("run", run) / _component("stage", stage)
        with reachable(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def run_uri(self, run: str, stage: str) -> str:
        """That folder's address, for messages."""
        return f"{self._uri}/runs/{run}/{stage}"

    def write_result(self, result: StageResult) -> None:
        """Keep a stage's result as the last thing of it. Raises StageFailure (STORE_UNAVAILABLE)."""
        path = self.run_dir(result.run, result.stage) / RESULT_NAME
        with reachable(path):
            durable.write_file(path, result.to_json().encode())

    def read_result(self, run: str, stage: Stage) -> StageResult | None:
        """A stage's result, or None where it has none that this version can read."""
        path = self._root / "runs" / _component("run", run) / stage / RESULT_NAME
        with reachable(path):
            if not _is_file(path):
                return None
            text = path.read_text()
        result = StageResult.parse(text)
        if result is None:
            logger.warning("%s was written by another version and is not used", path)
        return result

    def _folder(self, ref: ArtifactRef) -> Path:
        return self._root / ref.kind / _hexadecimal(ref.digest)

    def _discard(self, folder: Path) -> None:
        if not folder.exists():
            return
        logger.warning("%s has no manifest; it is an incomplete leftover and is replaced", folder)
        aside = self._root / STAGING / uuid.uuid4().hex
        folder.rename(aside)
        shutil.rmtree(aside)


@contextmanager
def reachable(path: Path) -> Iterator[None]:
    """Turn an OSError about the store into the failure that says what to check; `path` if it names none."""
    try:
        yield
    except OSError as error:
        raise unavailable(error, path) from error


def unavailable(error: OSError, path: Path) -> StageFailure:
    """The failure for a store that cannot be read or written."""
    named = path if error.filename is None else Path(os.fsdecode(error.filename))
    return StageFailure(
        FailureReason.STORE_UNAVAILABLE,
        f"store: {named}: {error.strerror or error}; check that the claim is mounted, has free space,"
        " and can be read and written by uid 65532",
        ExitCode.STORE_UNAVAILABLE,
    )


def verify_files(folder: Path, manifest: Manifest) -> None:
    """Check each listed file's size and hash. Raises StageFailure (ARTIFACT_CORRUPT) and OSError."""
    for entry in manifest.files:
        path = folder / entry.path
        if not path.is_file():
            raise corrupt(path, "it is missing")
        size = path.stat().st_size
        if size != entry.bytes:
            raise corrupt(path, f"it has {size} bytes, not {entry.bytes}")
        found = hash_file(path)
        if found != entry.sha256:
            raise corrupt(path, f"its sha256 is {found}, not {entry.sha256}")


def corrupt(path: Path, what: str) -> StageFailure:
    """The failure for a file that is not what its manifest says."""
    return StageFailure(
        FailureReason.ARTIFACT_CORRUPT,
        f"{path} was changed or damaged: {what}; delete {path.parent.name} from the store and run again"
        " the resource that makes it",
    )


def _is_file(path: Path) -> bool:
    # Path.is_file() would call a store that cannot be read an absent file.
    try:
        path.stat()
    except FileNotFoundError:
        return False
    return True


def _hexadecimal(digest: Digest) -> str:
    return digest.removeprefix("sha256:")


def _component(field: str, value: str) -> str:
    if value in ("", ".", "..") or "/" in value or "\0" in value:
        raise StageFailure(FailureReason.INVALID_CONFIG, f"{field}: {value!r} is no folder name")
    return value


def _remove_stale(parent: Path) -> None:
    oldest = time.time() - STALE_STAGING_SECONDS
    for folder in parent.iterdir():
        with suppress(FileNotFoundError):  # another pod is done with it
            if folder.stat().st_mtime < oldest:
                logger.info("removing %s, left behind by a pod that was killed", folder)
                shutil.rmtree(folder, ignore_errors=True)
