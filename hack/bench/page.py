"""The measured part of docs/benchmarks.md."""

import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from hack.bench.comparison import Comparison
from hack.bench.errors import BenchError
from hack.bench.tables import comparison, overview, requests
from hack.bootstrap.uv import ROOT
from hack.cluster.toolchain import KUBERNETES

PAGE: Final = ROOT / "docs" / "benchmarks.md"
BEGIN: Final = "<!-- Written by make bench-operator from here -->"
END: Final = "<!-- to here -->"


def write(page: Path, compared: Sequence[Comparison]) -> None:
    """Put what was measured in place of what stands between the markers of `page`.

    Raises:
        BenchError: the page has no markers.
    """
    text = page.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise BenchError(f"{page} has no line {BEGIN!r} and then {END!r}: put them back")
    sheets = [comparison(compared), overview(compared), *(requests(each.operator) for each in compared)]
    body = "\n\n".join([_circumstances(), *(sheet.to_markdown() for sheet in sheets)])
    page.write_text(f"{before}{BEGIN}\n{body}\n{END}{after}")


def _circumstances() -> str:
    # The page itself changes with each size that is measured.
    changed = _git("status", "--porcelain", "--", ".", f":(exclude){PAGE.relative_to(ROOT)}")
    commit = _git("rev-parse", "--short", "HEAD") + (", changed" if changed else "")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, commit {commit}; Kubernetes {KUBERNETES.version}, "
        f"Python {platform.python_version()}; {os.cpu_count()} cores ({_processor()}), {memory:.0f} GiB, "
        f"Linux {platform.release().partition('-')[0]}."
    )


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
