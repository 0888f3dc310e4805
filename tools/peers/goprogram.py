"""Programs of peers that are built from Go modules and kept in the cache."""

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tools.cluster.commands import run
from tools.cluster.toolchain import go_compiler


def pinned(source: Path, module: str) -> str:
    """Version of a module in the go.mod of the folder `source`, such as v1.9.6."""
    (found,) = re.findall(
        rf"^\s*(?:require )?{re.escape(module)} (v\S+)", (source / "go.mod").read_text(), re.MULTILINE
    )
    return str(found)


def download(source: Path, module: str) -> Path:
    """Read-only folder of a module that the folder `source` pins.

    Raises:
        ClusterError: there is no Go compiler, or the module could not be downloaded.
    """
    query = ("mod", "download", "-json", f"{module}@{pinned(source, module)}")
    return Path(json.loads(run([go_compiler(), "-C", str(source), *query]))["Dir"])


def build(source: Path, target: Path) -> None:
    """Build the tools of the module in the folder `source`.

    Args:
        source: folder with go.mod.
        target: file of the program, or existing folder for several programs.

    Raises:
        ClusterError: there is no Go compiler.
        subprocess.CalledProcessError: the build failed; its message is on the terminal.
    """
    flags = ("-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w")
    subprocess.run(
        [go_compiler(), "build", *flags, "-o", target, "tool"],
        cwd=source,
        env={**os.environ, "CGO_ENABLED": "0", "GOWORK": "off", "GOFLAGS": ""},
        stdin=subprocess.DEVNULL,
        check=True,
    )


@contextmanager
def installing(folder: Path, title: str, cpu_minutes: int) -> Iterator[Path | None]:
    """Empty folder that becomes `folder` at the end of the block, or None if `folder` already exists.

    Other processes wait meanwhile.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name.partition('-')[0]}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            yield None
            return
        print(
            f"Building {title} from Go modules (about {cpu_minutes} CPU minutes) …",
            file=sys.stderr,
            flush=True,
        )
        part = folder.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        yield part
        part.rename(folder)
