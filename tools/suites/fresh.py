# SPDX-License-Identifier: Apache-2.0
"""python -m tools.suites.fresh [--caches FOLDER]: measure .ci/run in a fresh clone with empty caches."""

import os
import subprocess
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from tools.bootstrap.uv import ROOT
from tools.suites.durations import PAGE, write_fresh


def measure(
    caches: Annotated[
        Path | None,
        typer.Option(help="Empty folder for the caches, which is kept. Default: a temporary one."),
    ] = None,
) -> None:
    """Run .ci/run in a fresh clone of HEAD with empty caches, and write its times into docs/testing.md."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        cache = (caches or folder / "caches").absolute()
        cache.mkdir(parents=True, exist_ok=True)
        if any(cache.iterdir()):
            raise typer.BadParameter(f"{cache} is not empty.", param_hint="--caches")
        clone = folder / "clone"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        started = time.monotonic()
        result = subprocess.run([".ci/run"], cwd=clone, env=_environment(cache), check=False)
        seconds = time.monotonic() - started
        if result.returncode:
            raise typer.Exit(result.returncode)
        PAGE.write_text((clone / PAGE.relative_to(ROOT)).read_text())
        write_fresh(seconds)


def _environment(cache: Path) -> dict[str, str]:
    """Environment in which downloads and builds go below `cache`, and the suites write their times."""
    return os.environ | {
        "XDG_CACHE_HOME": str(cache),
        "GOPATH": str(cache / "go"),
        "npm_config_cache": str(cache / "npm"),
        "PAGE": "1",
    }


if __name__ == "__main__":
    typer.run(measure)
