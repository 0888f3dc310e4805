"""Copy artifacts out of the store for a serving pod; nothing unverified ever gets its final name."""

import hashlib
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from finetune_trainer.contract import ExitCode, FailureReason, FetchConfig, FetchItem
from finetune_trainer.failure import StageFailure
from finetune_trainer.manifest import CHUNK_BYTES, MANIFEST_NAME, FileEntry, Manifest
from finetune_trainer.store import Store, corrupt, reachable, verify_files

LOG_SECONDS: Final = 5.0

logger = logging.getLogger(__name__)


def run(config: FetchConfig) -> None:
    """Put each item's folder under the destination, each file verified while it is copied.

    What is already there and right is kept, so a restarted pod fetches nothing twice.
    Raises StageFailure: ARTIFACT_NOT_FOUND, ARTIFACT_CORRUPT naming the file, STORE_UNAVAILABLE,
    INTERNAL where the destination cannot be written.
    """
    store = Store(config.store)
    for item in config.items:
        _check_folder(item)
        manifest = store.manifest(item.artifact)
        target = Path(config.destination, item.folder)
        with _writable(target):
            if _is_right(target, manifest):
                logger.info("%s is there already and right", target)
                continue
        _fetch(store.artifact(item.artifact), manifest, target)


def _fetch(source: Path, manifest: Manifest, target: Path) -> None:
    temporary = target.with_name(f".{target.name}.part")
    progress = _CopyProgress(target.name, manifest.total_bytes)
    # A container that was killed leaves its part behind.
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        for entry in manifest.files:
            _copy_verified(source / entry.path, temporary / entry.path, entry, progress)
        with _writable(target):
            temporary.mkdir(parents=True, exist_ok=True)
            (temporary / MANIFEST_NAME).write_bytes(manifest.to_bytes())
            if target.exists():
                shutil.rmtree(target)
            temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    logger.info("%s: %d files, %d bytes, all verified", target, len(manifest.files), manifest.total_bytes)


def _copy_verified(source: Path, target: Path, entry: FileEntry, progress: "_CopyProgress") -> None:
    content = hashlib.sha256()
    with _writable(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as copy:
            for chunk in _chunks(source):
                content.update(chunk)
                copy.write(chunk)
                progress.add(len(chunk))
    if content.hexdigest() != entry.sha256:
        raise corrupt(source, f"its sha256 is {content.hexdigest()}, not {entry.sha256}")


def _chunks(source: Path) -> Iterator[bytes]:
    with reachable(source):
        try:
            file = source.open("rb")
        except FileNotFoundError as error:
            raise corrupt(source, "it is missing") from error
        with file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk


def _is_right(folder: Path, manifest: Manifest) -> bool:
    path = folder / MANIFEST_NAME
    if not path.exists() or path.read_bytes() != manifest.to_bytes():
        return False
    try:
        verify_files(folder, manifest)
    except StageFailure as failure:
        logger.warning("%s; it is fetched again", failure.message)
        return False
    return True


def _check_folder(item: FetchItem) -> None:
    if Path(item.folder).name != item.folder or item.folder in ("", ".."):
        raise StageFailure(
            FailureReason.INVALID_CONFIG, f"items.folder: {item.folder!r} is no plain folder name"
        )


@contextmanager
def _writable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StageFailure(
            FailureReason.INTERNAL,
            f"{error.filename or path}: {error.strerror or error}; the pod's own volume cannot hold the"
            " model: check the node's disk space and the pod's limit of ephemeral-storage",
            ExitCode.INTERNAL,
        ) from error


class _CopyProgress:
    """Logs how far a folder is, every few seconds."""

    def __init__(self, name: str, total_bytes: int) -> None:
        self._name = name
        self._total = total_bytes
        self._done = 0
        self._logged_at = time.monotonic()

    def add(self, count: int) -> None:
        self._done += count
        if time.monotonic() - self._logged_at >= LOG_SECONDS:
            self._logged_at = time.monotonic()
            logger.info("%s: %.0f %% of %d bytes", self._name, 100 * self._done / self._total, self._total)
