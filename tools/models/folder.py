# SPDX-License-Identifier: Apache-2.0
"""Model folders in the cache; each is complete or absent."""

import fcntl
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

from tools.bootstrap.uv import cache_directory


def cached(name: str, ingredients: bytes, make: Callable[[Path], None]) -> Path:
    """The cached folder `name`; `make` fills it when it is missing or `ingredients` have changed.

    Concurrent processes get the same folder, which is made once.
    """
    parent = cache_directory() / "models"
    parent.mkdir(parents=True, exist_ok=True)
    folder = parent / f"{name}-{hashlib.sha256(ingredients).hexdigest()[:12]}"
    with (parent / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            for leftover in parent.glob(f"{name}-*.part"):
                shutil.rmtree(leftover)
            part = folder.with_suffix(".part")
            part.mkdir()
            make(part)
            for file in part.iterdir():
                file.chmod(
                    0o644
                )  # weights are written readable by their owner only; pods run as another user
            part.rename(folder)
    return folder
