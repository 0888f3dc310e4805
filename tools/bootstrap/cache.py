"""Where downloads and builds are kept, so that a second checkout need not repeat them."""

import os
from pathlib import Path


def cache_directory() -> Path:
    """The project's folder in the user's cache; it may not exist yet."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "finetune-operator"
