# SPDX-License-Identifier: Apache-2.0
"""Folders of a run's states: the names of their files, and how they appear complete or not at all.

The manifest is written last, then the folder gets its final name.
"""

import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from pydantic import ValidationError
from safetensors import SafetensorError

from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.distributed.process_group import Group
from finetune_trainer.manifest import MANIFEST_NAME, FileEntry, Manifest
from finetune_trainer.model.device import is_collective_error
from finetune_trainer.rooted_open import read_file
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.store import RunFolder, file_writing
from finetune_trainer.store.failures import Mount, any_file, verify_files
from finetune_trainer.store.file_writing import HashedFolder, WriteFile

STATE: Final = "state"
BEST: Final = "best"
KEPT_STEPS: Final = "kept"
PREFIX: Final = "step-"

LEDGER: Final = "ledger.json"
TRAINER_STATE: Final = "trainer_state.json"

ROW_LOSSES: Final = "row_losses.json"
"""The validation loss by row of the best weights, in their folder. It is not published with them."""

SHARD: Final = re.compile(r"shard-\d{5}-of-(?P<size>\d{5})\.safetensors")
RANDOM_NUMBERS: Final = "rng_state"


def folder_name(parent: str, step: int) -> str:
    """Name of a folder of a step."""
    return f"{parent}/{PREFIX}{step}"


def shard_name(group: Group) -> str:
    """Name of the file with this process's rows of all tensors."""
    return f"shard-{group.rank:05d}-of-{group.size:05d}.safetensors"


def random_numbers_name(rank: int, size: int) -> str:
    """Name of the file with the random number generators of a process; transformers uses the same."""
    return f"{RANDOM_NUMBERS}.pth" if size == 1 else f"{RANDOM_NUMBERS}_{rank}.pth"


def is_sharded(folder: Path) -> bool:
    """Whether a saved state has one file of tensors per process."""
    return any(SHARD.fullmatch(path.name) for path in folder.iterdir())


def filter_needed_files(group: Group, names: Iterable[str]) -> Callable[[str], bool]:
    """Return a filter for the files of a state that this process reads.

    If the state was saved by another number of processes, each process reads the files of all.
    """
    sizes = {int(match["size"]) for name in names if (match := SHARD.fullmatch(name))}
    if sizes != {group.size}:
        return lambda _: True
    own = {shard_name(group), random_numbers_name(group.rank, group.size)}
    return lambda name: name in own or not (SHARD.fullmatch(name) or name.startswith(RANDOM_NUMBERS))


def save_folder(folder: RunFolder, name: str, fill: Callable[[Path], None]) -> None:
    """Let `fill` write into an empty folder, then rename it to `name`, replacing an existing folder.

    Raises StageFailure if it cannot be written or stored.
    """

    def fill_and_hash(temporary: Path) -> Manifest:
        fill(temporary)
        return Manifest.of(temporary)

    _save(folder, name, fill_and_hash)


def save_files(folder: RunFolder, name: str, files: Mapping[str, WriteFile]) -> None:
    """Save files as the folder `name`. Each is hashed while it is written.

    Raises StageFailure if it cannot be written or stored.
    """

    def write(temporary: Path) -> Manifest:
        return Manifest(files=tuple(write_files(temporary, files)))

    _save(folder, name, write)


def write_files(folder: Path, files: Mapping[str, WriteFile]) -> list[FileEntry]:
    """Write files in this order, and sync them to the disk. Returns their entries, sorted. Raises OSError."""
    hashed = HashedFolder(folder)
    with convert_library_errors():
        for name, write in files.items():
            hashed.write(name, write)
    return sorted(hashed.entries, key=lambda entry: entry.path)


def _save(folder: RunFolder, name: str, write: Callable[[Path], Manifest]) -> None:
    with folder.writable(name) as target:
        temporary = _unfinished_path(target)
        try:
            temporary.mkdir(parents=True)
            with convert_library_errors():
                manifest = write(temporary)
            file_writing.write_file(temporary / MANIFEST_NAME, manifest.to_bytes())
            file_writing.replace_folder(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    folder.keep(name)


def read_manifest(run: RunFolder, name: str) -> Manifest | None:
    """Read the manifest of a saved folder; None without a valid one.

    Raises StageFailure (STORE_UNAVAILABLE), Preempted.
    """
    content = run.read(f"{name}/{MANIFEST_NAME}")
    try:
        return None if content is None else Manifest.model_validate_json(content)
    except ValidationError:
        return None


def find_problem(run: RunFolder, name: str, needed: Callable[[str], bool] = any_file) -> str | None:
    """Describe what is wrong with the needed files of a saved folder; None if they are valid.

    Raises StageFailure (STORE_UNAVAILABLE), Preempted.
    """
    folder = run.load(name, needed)
    # For a bucket the pod checks its copy, but messages must name the store's content.
    stored = Mount(run.uri, run.path)
    try:
        with run.mount.reachable(folder):
            try:
                content = read_file(folder / MANIFEST_NAME, folder)
            except FileNotFoundError:
                return f"it has no {MANIFEST_NAME}"
            manifest = Manifest.model_validate_json(content)
            files = tuple(entry for entry in manifest.files if needed(entry.path))
            verify_files(folder, Manifest(files=files), named=stored.named)
    except ValidationError:
        return f"its {MANIFEST_NAME} is not a manifest"
    except StageFailure as failure:
        if failure.reason == FailureReason.STORE_UNAVAILABLE:
            raise
        return failure.message
    return None


def remove_unfinished(run: RunFolder, parent: str, prefix: str) -> None:
    """Remove unfinished folders of a killed pod from `parent`, whose final names start with `prefix`.

    Creates `parent` if it does not exist. Raises StageFailure (STORE_UNAVAILABLE).
    """
    folder = run.path / parent
    with run.mount.reachable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(f".{prefix}*"):
            shutil.rmtree(leftover)


def _unfinished_path(target: Path) -> Path:
    return target.with_name(f".{target.name}.{uuid.uuid4().hex}")


@contextmanager
def convert_library_errors() -> Iterator[None]:
    """Raise the errors of PyTorch and safetensors in the block as an OSError.

    They report a failed write with errors of their own, most often because the disk is full.
    """
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        if is_collective_error(error):
            raise
        raise OSError(str(error)) from error
