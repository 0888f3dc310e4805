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

from finetune_trainer import durable
from finetune_trainer.contract import ExitCode, FailureReason
from finetune_trainer.failure import StageFailure
from finetune_trainer.manifest import MANIFEST_NAME, Manifest
from finetune_trainer.store import reachable, verify_files


def save_folder(target: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write into an empty folder, then give it the name `target`; replaces what is there.

    Raises StageFailure (STORE_UNAVAILABLE).
    """
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with reachable(target):
            temporary.mkdir(parents=True)
            fill(temporary)
            durable.write_file(temporary / MANIFEST_NAME, Manifest.of(temporary).to_bytes())
            if target.exists():
                replaced = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
                target.rename(replaced)
                shutil.rmtree(replaced)
            durable.move_folder(temporary, target)
    except (RuntimeError, SafetensorError) as error:
        # How PyTorch and safetensors report a write that failed.
        raise StageFailure(
            FailureReason.STORE_UNAVAILABLE,
            f"store: {target}: {error}; check that the claim has free space",
            ExitCode.STORE_UNAVAILABLE,
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def problem_of(folder: Path) -> str | None:
    """What is wrong with a saved folder, or None. Raises StageFailure (STORE_UNAVAILABLE)."""
    try:
        with reachable(folder):
            manifest = Manifest.model_validate_json((folder / MANIFEST_NAME).read_bytes())
            verify_files(folder, manifest)
    except ValidationError:
        return f"its {MANIFEST_NAME} is no manifest"
    except StageFailure as failure:
        if failure.reason == FailureReason.STORE_UNAVAILABLE and (folder / MANIFEST_NAME).exists():
            raise
        return failure.message
    return None


def remove_unfinished(parent: Path, prefix: str) -> None:
    """Remove what a killed pod left of folders whose names begin with `prefix`.

    Makes `parent` if it is not there. Raises StageFailure (STORE_UNAVAILABLE).
    """
    with reachable(parent):
        parent.mkdir(parents=True, exist_ok=True)
        for leftover in parent.glob(f".{prefix}*"):
            shutil.rmtree(leftover)
