# SPDX-License-Identifier: Apache-2.0
"""Copy folders as hard links."""

import errno
import os
import shutil
from pathlib import Path


def link(source: str | Path, target: str | Path) -> None:
    """Hard-link `target` to `source`; copy it if they are on different file systems."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in {errno.EXDEV, errno.EMLINK}:
            raise
        shutil.copy2(source, target, follow_symlinks=False)


def link_tree(source: Path, target: Path) -> None:
    """Link every file of the folder `source` into the folder `target`, which may exist."""
    shutil.copytree(source, target, symlinks=True, copy_function=link, dirs_exist_ok=True)
