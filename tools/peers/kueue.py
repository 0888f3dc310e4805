"""Kueue, built from its Go module.

It is for tests: nothing that the project ships has it.
"""

import shutil
from pathlib import Path
from typing import Final

from tools.bootstrap.cache import cache_directory
from tools.images.tags import content_key
from tools.peers import goprogram

SOURCE: Final = Path(__file__).parent / "kueueprogram"
MODULE: Final = "sigs.k8s.io/kueue"
FILES: Final = ("tools/peers/kueue.py", "tools/peers/kueueprogram")
"""Files that determine the program."""


def version() -> str:
    """The pinned version."""
    return goprogram.pinned(SOURCE, MODULE)


def program() -> Path:
    """The controller manager of Kueue; complete or absent."""
    return cache_directory() / "peers" / f"kueue-{content_key(FILES)}" / "kueue"


def manifests() -> Path:
    """Folder of Kueue's own kustomization, beside the program."""
    return program().parent / "config" / "default"


def is_installed() -> bool:
    """Whether the cache has the program for the present pins."""
    return program().exists()


def install() -> None:
    """Build the program unless the cache has it, and copy the manifests of its module.

    Raises:
        ClusterError: there is no Go compiler, or a module could not be downloaded.
        subprocess.CalledProcessError: the build failed; its message is on the terminal.
    """
    with goprogram.installing(program().parent, "Kueue", cpu_minutes=5) as part:
        if part is None:
            return
        found = goprogram.download(SOURCE, MODULE)
        # Files of the module cache are read-only, and the folders of the copy must be writable.
        shutil.copytree(found / "config", part / "config", copy_function=shutil.copyfile)
        for path in (part / "config", *(part / "config").rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        goprogram.build(SOURCE, part / program().name)
