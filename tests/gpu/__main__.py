# SPDX-License-Identifier: Apache-2.0
"""python -m tests.gpu [STEP...]: run the steps that have no result yet, and print all results.

Each step is a process of its own and ends within MAX_STEP_SECONDS. Its result is a file in build/gpu, so a
command that is cut off goes on where it was; `--again` forgets them. Without STEP all steps run, in order.
Exit code 1: a step failed.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

from tests.gpu.errors import GPUCheckFailed, StepNotPossible
from tests.gpu.scene import Scene
from tests.gpu.steps import MAX_STEP_SECONDS, STEPS
from tools.bench.page import PAGE, Sheet, put
from tools.bootstrap.uv import ROOT

BEGIN: Final = "<!-- Written by make gpu-smoke from here -->"
PASSED: Final = "passed"


def main() -> int:
    """Run the command line. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__)
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"one of {', '.join(STEPS)}")
    parser.add_argument("--rehearse", action="store_true", help="the same steps, tiny, on a CPU; no figures")
    parser.add_argument("--again", action="store_true", help="forget earlier results")
    parser.add_argument("--page", action="store_true", help="write the results into docs/benchmarks.md")
    parser.add_argument("--folder", type=Path, default=None, help="default: build/gpu, build/gpu-rehearsal")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder = options.folder or ROOT / "build" / ("gpu-rehearsal" if options.rehearse else "gpu")
    if unknown := [step for step in options.steps if step not in STEPS]:
        parser.error(f"no step {', '.join(unknown)}; the steps are {', '.join(STEPS)}")
    names = options.steps or list(STEPS)
    if options.alone:
        return _run(names[0], folder, options.rehearse)
    if options.again:
        shutil.rmtree(folder, ignore_errors=True)
    if not options.rehearse and not _has_gpu():
        print(
            "gpu-smoke: PyTorch finds no CUDA device here; --rehearse runs the steps on a CPU",
            file=sys.stderr,
        )
        return 1
    results = {name: _result(name, folder, options.rehearse) for name in names}
    if options.page:
        put(PAGE, BEGIN, [_sheet(name, result) for name, result in results.items()], _circumstances(results))
    return int(any(result["outcome"] == "failed" for result in results.values()))


def _result(name: str, folder: Path, rehearse: bool) -> dict[str, Any]:
    """The kept result of a step, or that of running it now."""
    file = folder / f"{name}.json"
    if not file.exists():
        begin = time.monotonic()
        command = [sys.executable, "-m", "tests.gpu", name, "--alone", "--folder", str(folder)]
        try:
            subprocess.run(
                [*command, *(["--rehearse"] if rehearse else [])],
                check=False,
                timeout=MAX_STEP_SECONDS,
                env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT / "trainer_image"), str(ROOT)))},
            )
        except subprocess.TimeoutExpired:
            _write(file, {"outcome": "failed", "why": f"not finished after {MAX_STEP_SECONDS} s"})
        if not file.exists():
            _write(file, {"outcome": "failed", "why": "the process ended without a result; see its output"})
        print(f"{name}: {time.monotonic() - begin:.0f} s", flush=True)
    result: dict[str, Any] = json.loads(file.read_text())
    print(f"{name}: {json.dumps(result, ensure_ascii=False)}", flush=True)
    return result


def _run(name: str, folder: Path, rehearse: bool) -> int:
    """Run one step in this process and write its result."""
    work = folder / f"{name}.work"
    shutil.rmtree(work, ignore_errors=True)
    scene = Scene(work, "cpu" if rehearse else "cuda", rehearse)
    try:
        result = {"outcome": PASSED, "figures": STEPS[name](scene)}
    except StepNotPossible as error:
        result = {"outcome": "not run", "why": str(error)}
    except (GPUCheckFailed, subprocess.CalledProcessError) as error:
        result = {"outcome": "failed", "why": str(error)}
    shutil.rmtree(work, ignore_errors=True)
    _write(folder / f"{name}.json", result)
    return 0


def _write(file: Path, result: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps(result, ensure_ascii=False))
    part.rename(file)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _sheet(name: str, result: dict[str, Any]) -> Sheet:
    figures = result.get("figures") or {"why": result.get("why", "")}
    return Sheet(
        f"{name}: {result['outcome']}", ("", ""), tuple((key, str(value)) for key, value in figures.items())
    )


def _circumstances(results: dict[str, dict[str, Any]]) -> str:
    figures = results.get("machine", {}).get("figures", {})
    return ", ".join(f"{key} {value}" for key, value in figures.items())


if __name__ == "__main__":
    sys.exit(main())
