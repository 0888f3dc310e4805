"""What can be wrong with a store, with an artifact, or with the pod's own volume, and what to do about it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune_trainer.contract import ExitCode, FailureReason
from finetune_trainer.failure import StageFailure
from finetune_trainer.manifest import Manifest, hash_file


@contextmanager
def reachable(path: Path) -> Iterator[None]:
    """Turn an OSError about a mounted store into the failure that says what to check.

    `path` is named where the error names none.
    """
    try:
        yield
    except OSError as error:
        raise unavailable(error, path) from error


def unavailable(error: OSError, path: Path) -> StageFailure:
    """The failure for a mounted store that cannot be read or written."""
    return StageFailure(
        FailureReason.STORE_UNAVAILABLE,
        f"store: {_named(error, path)}: {error.strerror or error}; check that the claim is mounted, has free"
        " space, and can be read and written by uid 65532",
        ExitCode.STORE_UNAVAILABLE,
    )


@contextmanager
def writable(path: Path) -> Iterator[None]:
    """Turn an OSError about the pod's own volume into the failure that says what to check."""
    try:
        yield
    except OSError as error:
        raise no_room(error, path) from error


def no_room(error: OSError, path: Path) -> StageFailure:
    """The failure for a volume of the pod that cannot hold what is written to it."""
    return StageFailure(
        FailureReason.INTERNAL,
        f"{_named(error, path)}: {error.strerror or error}; the pod's own volume cannot hold the files: check"
        " the node's disk space and the pod's limit of ephemeral-storage",
        ExitCode.INTERNAL,
    )


def corrupt(place: str, what: str) -> StageFailure:
    """The failure for a file that is not what its manifest says."""
    return StageFailure(
        FailureReason.ARTIFACT_CORRUPT,
        f"{place} was changed or damaged: {what}; delete its folder from the store and run again the resource"
        " that makes it",
    )


def verify_files(folder: Path, manifest: Manifest) -> None:
    """Check each listed file's size and hash. Raises StageFailure (ARTIFACT_CORRUPT) and OSError."""
    for entry in manifest.files:
        path = folder / entry.path
        if not path.is_file():
            raise corrupt(str(path), "it is missing")
        size = path.stat().st_size
        if size != entry.bytes:
            raise corrupt(str(path), f"it has {size} bytes, not {entry.bytes}")
        found = hash_file(path)
        if found != entry.sha256:
            raise corrupt(str(path), f"its sha256 is {found}, not {entry.sha256}")


def _named(error: OSError, path: Path) -> Path:
    return path if error.filename is None else Path(os.fsdecode(error.filename))
