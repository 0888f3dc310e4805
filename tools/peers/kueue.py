"""Kueue, built from its Go module.

It is for tests: nothing that the project ships has it.
"""

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from tools.bootstrap.cache import cache_directory
from tools.cluster.commands import run
from tools.cluster.toolchain import go_compiler
from tools.images.tags import content_key

SOURCE: Final = Path(__file__).parent / "kueueprogram"
MODULE: Final = "sigs.k8s.io/kueue"
FILES: Final = ("tools/peers/kueue.py", "tools/peers/kueueprogram")
"""Files that determine the program."""


def version() -> str:
    """The pinned version."""
    (found,) = re.findall(
        rf"^\s*(?:require )?{re.escape(MODULE)} (v\S+)", (SOURCE / "go.mod").read_text(), re.MULTILINE
    )
    return str(found)


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
    folder = program().parent
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / "kueue.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if is_installed():
            return
        print("Building Kueue from its Go module (about 5 CPU minutes) …", file=sys.stderr, flush=True)
        part = folder.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        query = ("mod", "download", "-json", f"{MODULE}@{version()}")
        found = json.loads(run([go_compiler(), "-C", str(SOURCE), *query]))
        # Files of the module cache are read-only, and the folders of the copy must be writable.
        shutil.copytree(Path(found["Dir"], "config"), part / "config", copy_function=shutil.copyfile)
        for path in (part / "config", *(part / "config").rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        flags = ("-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w")
        subprocess.run(
            [go_compiler(), "build", *flags, "-o", part / program().name, "tool"],
            cwd=SOURCE,
            env={**os.environ, "CGO_ENABLED": "0", "GOWORK": "off", "GOFLAGS": ""},
            stdin=subprocess.DEVNULL,
            check=True,
        )
        part.rename(folder)
