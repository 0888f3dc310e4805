# SPDX-License-Identifier: Apache-2.0
"""Build the programs of a cluster once, and keep them in the cache by content."""

import fcntl
import logging
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from tools.cluster.errors import ClusterError
from tools.cluster.gomodules import download, go_compiler
from tools.cluster.toolchain import TOOLS, Tool, Trimmed

LOG: Final = logging.getLogger(__name__)
_REPORT_SECONDS: Final = 15
_FAILURE_LINES: Final = 30


def ensure(tools: Sequence[Tool] = TOOLS) -> None:
    """Build the tools that are not in the cache, and log the progress.

    Raises:
        ClusterError: the Go compiler is missing, a module could not be downloaded, or a build failed; the
            message has the compiler's last lines.
    """
    missing = [tool for tool in tools if not tool.is_built()]
    if not missing:
        return
    go = go_compiler()
    parent = missing[0].folder.parent
    parent.mkdir(parents=True, exist_ok=True)
    with (parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        missing = [tool for tool in missing if not tool.is_built()]
        LOG.info("Building from Go modules (once): %s", ", ".join(tool.name for tool in missing))
        for tool in missing:
            _build(go, tool)


def _build(go: str, tool: Tool) -> None:
    started = time.monotonic()
    unfinished = tool.folder.with_name(f"{tool.folder.name}.part")
    if unfinished.exists():
        shutil.rmtree(unfinished)
    unfinished.mkdir()
    for module, folder in tool.files:
        _copy(download(tool.source, module) / folder, unfinished / folder)
    if tool.programs:
        with _source(tool) as source:
            _compile(go, tool, source, unfinished)
    unfinished.rename(tool.folder)
    LOG.info("  %s %s built in %.0f s", tool.name, tool.version, time.monotonic() - started)


def _compile(go: str, tool: Tool, source: Path, unfinished: Path) -> None:
    started = time.monotonic()
    output = unfinished / "output"
    # A module with one program may have another name for it. -v prints each package that is compiled.
    target = unfinished / tool.programs[0] if len(tool.programs) == 1 else f"{unfinished}/"
    command = [go, "build", "-v", "-o", target, *tool.build_arguments]
    # Less garbage collection saves a tenth of the time and costs memory that a build machine has.
    environment = {"GOGC": "400", **os.environ, "CGO_ENABLED": "0", "GOWORK": "off", "GOFLAGS": ""}
    with (
        output.open("w") as log,
        subprocess.Popen(
            command,
            cwd=source,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        while process.poll() is None:
            try:
                process.wait(_REPORT_SECONDS)
            except subprocess.TimeoutExpired:
                seconds = time.monotonic() - started
                LOG.info("  %s: %d packages compiled, %.0f s", tool.name, len(_lines(output)), seconds)
    missing = [name for name in tool.programs if not (unfinished / name).exists()]
    if process.returncode or missing:
        reason = f"missing: {', '.join(missing)}" if missing else f"exit status {process.returncode}"
        last = "\n".join(_lines(output)[-_FAILURE_LINES:])
        raise ClusterError(f"the build of {tool.name} in {tool.source} failed ({reason}):\n{last}")
    output.unlink()


@contextmanager
def _source(tool: Tool) -> Iterator[Path]:
    """Folder of the tool's module: that of the repository, or a copy with the trimmed modules."""
    if not tool.trimmed:
        yield tool.source
        return
    with TemporaryDirectory() as scratch:
        copy = Path(scratch, tool.name)
        shutil.copytree(tool.source, copy)
        for each in tool.trimmed:
            found = download(tool.source, each.module)
            _copy(found, copy / each.folder, partial(_is_compiled, each))
        yield copy


def _is_compiled(trimmed: Trimmed, path: Path) -> bool:
    is_source = path.name == "go.mod" or (path.suffix == ".go" and not path.stem.endswith("_test"))
    return is_source and not any(path.is_relative_to(folder) for folder in trimmed.left_out)


def _copy(source: Path, target: Path, chosen: Callable[[Path], bool] = lambda _: True) -> None:
    """Copy the chosen files, given by their paths in `source`, without its permissions: it is read-only."""
    for file in source.rglob("*"):
        path = file.relative_to(source)
        if file.is_file() and chosen(path):
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target / path)


def _lines(path: Path) -> list[str]:
    return path.read_text(errors="replace").splitlines()
