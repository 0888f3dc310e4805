"""Folders below a run that are there completely or not at all.

Like an artifact of the store, such a folder is complete when its `manifest.json` is there, and it is forced
to the disk before it gets its name.
"""

import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError

from finetune_trainer.beneath import read_file
from finetune_trainer.contract.outcomes import FailureReason
from finetune_trainer.manifest import MANIFEST_NAME, Manifest
from finetune_trainer.runtime.failure import StageFailure
from finetune_trainer.store import RunFolder, durable
from finetune_trainer.store.failures import Mount, verify_files


def save_folder(folder: RunFolder, name: str, fill: Callable[[Path], None]) -> None:
    """Let `fill` write into an empty folder, then give it its name; replaces what is there.

    Raises StageFailure where it cannot be written or kept.
    """
    with folder.writable(name) as target:
        temporary = _unfinished(target)
        try:
            temporary.mkdir(parents=True)
            _fill(temporary, fill)
            durable.write_file(temporary / MANIFEST_NAME, Manifest.of(temporary).to_bytes())
            if target.exists():
                replaced = _unfinished(target)
                target.rename(replaced)
                shutil.rmtree(replaced)
            durable.move_folder(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    folder.keep(name)


def problem_of(run: RunFolder, name: str) -> str | None:
    """What is wrong with a saved folder, or None. Raises StageFailure (STORE_UNAVAILABLE), Preempted."""
    folder = run.load(name)
    # Also in a bucket, of which the pod has a copy, it is the store's content that is wrong.
    stored = Mount(run.uri, run.path)
    try:
        with run.mount.reachable(folder):
            try:
                content = read_file(folder / MANIFEST_NAME, folder)
            except FileNotFoundError:
                return f"it has no {MANIFEST_NAME}"
            verify_files(folder, Manifest.model_validate_json(content), named=stored.named)
    except ValidationError:
        return f"its {MANIFEST_NAME} is no manifest"
    except StageFailure as failure:
        if failure.reason == FailureReason.STORE_UNAVAILABLE:
            raise
        return failure.message
    return None


def remove_unfinished(run: RunFolder, parent: str, prefix: str) -> None:
    """Remove what a killed pod left in `parent` of folders whose names begin with `prefix`.

    Makes `parent` if it is not there. Raises StageFailure (STORE_UNAVAILABLE).
    """
    folder = run.path / parent
    with run.mount.reachable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(f".{prefix}*"):
            shutil.rmtree(leftover)


def _unfinished(target: Path) -> Path:
    return target.with_name(f".{target.name}.{uuid.uuid4().hex}")


def _fill(folder: Path, fill: Callable[[Path], None]) -> None:
    try:
        fill(folder)
    except (RuntimeError, SafetensorError) as error:
        # How PyTorch and safetensors report a write that failed, most often for want of space.
        raise OSError(str(error)) from error
