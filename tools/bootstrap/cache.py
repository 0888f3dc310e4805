# SPDX-License-Identifier: Apache-2.0
"""The cache of downloads and builds, shared by all checkouts."""

import os
from pathlib import Path


def cache_directory() -> Path:
    """The project's folder in the user's cache; may not exist."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "finetune-operator"
