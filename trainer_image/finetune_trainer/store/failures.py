# SPDX-License-Identifier: Apache-2.0
"""Failures of a store, of an artifact and of the pod's own volume, with their remedies."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from finetune_trainer.contract.vocabulary import ExitCode, FailureReason
from finetune_trainer.disk_space import NoSpace
from finetune_trainer.manifest import MANIFEST_NAME, Manifest, hash_content
from finetune_trainer.rooted_open import PathRefused, open_file, require_all_beneath
from finetune_trainer.runtime.termination import StageFailure


@dataclass(frozen=True)
class Mount:
    """A mounted folder, which messages name by its uri."""

    uri: str
    root: Path

    def named(self, path: Path) -> str:
        """Return the uri of a path below the folder, and other paths unchanged."""
        if not path.is_relative_to(self.root):
            return str(path)
        inside = path.relative_to(self.root).as_posix()
        return self.uri if inside == "." else f"{self.uri}/{inside}"

    @contextmanager
    def reachable(self, path: Path) -> Iterator[None]:
        """Convert an OSError into a failure that says what to check.

        The failure names `path` if the error names no path.
        """
        try:
            yield
        except OSError as error:
            raise self.unavailable(error, path) from error

    def unavailable(self, error: OSError, path: Path) -> StageFailure:
        """Build the failure for a folder that cannot be read or written."""
        place = self.named(_named(error, path))
        exit_code = ExitCode.STORE_UNAVAILABLE
        if isinstance(error, PathRefused):
            message = f"store: {place} {error.strerror}"
        elif isinstance(error, NoSpace):
            message = f"store: {place}: {error.strerror}; free space on this volume, or use a larger claim"
            # Nothing is free a few seconds later. The operator repeats the stage after minutes.
            exit_code = ExitCode.BAD_CONFIG
        else:
            message = (
                f"store: {place}: {error.strerror or error}; check that the claim is mounted, has free space,"
                " and can be read and written by uid 65532"
            )
        return StageFailure(FailureReason.STORE_UNAVAILABLE, message, exit_code)


@contextmanager
def convert_write_errors(path: Path) -> Iterator[None]:
    """Convert an OSError of the pod's own volume into a failure that says what to check."""
    try:
        yield
    except OSError as error:
        raise pod_volume_full(error, path) from error


def pod_volume_full(error: OSError, path: Path) -> StageFailure:
    """Build the failure for a pod's own volume that cannot hold the files."""
    return StageFailure(
        FailureReason.INTERNAL,
        f"{_named(error, path)}: {error.strerror or error}; the pod's own volume cannot hold the files: check"
        " the node's disk space and the pod's limit of ephemeral-storage",
        ExitCode.INTERNAL,
    )


REMAKE: Final = "delete its folder from the store and recreate the resource that makes it"
"""What to do about a damaged artifact in the store."""


def corruption_failure(place: str, what: str, advice: str = REMAKE) -> StageFailure:
    """Build the failure for a file that does not match its manifest."""
    return StageFailure(FailureReason.ARTIFACT_CORRUPT, f"{place} was changed or damaged: {what}; {advice}")


def any_file(_: str) -> bool:
    """Accept every file."""
    return True


def verify_files(
    folder: Path,
    manifest: Manifest,
    root: Path | None = None,
    *,
    hashes: bool = True,
    named: Callable[[Path], str] = str,
    advice: str = REMAKE,
) -> None:
    """Check that each listed file exists beneath `root`, or else `folder`, with its size and hash.

    No link in the folder may lead out either. `named` returns the name of a path for messages, which end with
    `advice`.

    Raises StageFailure (ARTIFACT_CORRUPT), OSError.
    """
    try:
        require_all_beneath(folder, root or folder)
    except PathRefused as refusal:
        raise corruption_failure(named(Path(refusal.filename)), f"it {refusal.strerror}", advice) from refusal
    for entry in manifest.files:
        path = folder / entry.path
        with open_entry(path, root or folder, named, advice) as file:
            size = os.fstat(file.fileno()).st_size
            if size != entry.bytes:
                raise corruption_failure(named(path), f"it has {size} bytes, not {entry.bytes}", advice)
            if hashes and (found := hash_content(file)) != entry.sha256:
                raise corruption_failure(named(path), f"its sha256 is {found}, not {entry.sha256}", advice)


def verify_names(folder: Path, manifest: Manifest, *, named: Callable[[Path], str], advice: str) -> None:
    """Check that the folder has no file that the manifest does not list, because libraries may open it too.

    Raises StageFailure (ARTIFACT_CORRUPT), OSError.
    """
    listed = {folder / name for name in (MANIFEST_NAME, *(entry.path for entry in manifest.files))}
    for path in folder.rglob("*"):
        if path.is_symlink() or not (path.is_dir() or path in listed):
            raise corruption_failure(named(path), "it is not in the manifest", advice)


def open_entry(path: Path, root: Path, named: Callable[[Path], str] = str, advice: str = REMAKE) -> BinaryIO:
    """Open a file that a manifest lists. Raises StageFailure (ARTIFACT_CORRUPT), OSError."""
    try:
        return open(open_file(path, root), "rb")  # noqa: PTH123 - of a descriptor
    except (FileNotFoundError, NotADirectoryError) as error:
        raise corruption_failure(named(path), "it is missing", advice) from error
    except PathRefused as refusal:
        raise corruption_failure(named(path), f"it {refusal.strerror}", advice) from refusal


def _named(error: OSError, path: Path) -> Path:
    return path if error.filename is None else Path(os.fsdecode(error.filename))
