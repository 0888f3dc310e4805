# SPDX-License-Identifier: Apache-2.0
"""python -m tests.gpu [STEP...]: run the steps that have no result yet, and print all results.

Each step is a process of its own and ends within MAX_STEP_SECONDS. Its result is a file in build/gpu, so a
command that is cut off, or ends by `--seconds`, continues where it was; `--again` forgets them. Without STEP
all steps run, in order. Exit code 1: a step failed.
"""

import argparse
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.gpu.errors import GPUCheckFailed, StepNotPossible
from tests.gpu.scene import Scene
from tests.gpu.stage_process import adapt
from tests.gpu.steps import GUARDS, MAX_STEP_SECONDS, STEPS
from tools.bench.page import PAGE, Sheet, put
from tools.bootstrap.uv import ROOT

BEGIN: Final = "<!-- Written by make gpu-smoke from here -->"
PASSED: Final = "passed"
FAILED: Final = "failed"
MIN_STEP_SECONDS: Final = 45
"""No step begins with less time than this: loading its packages and model takes most of it."""


def main() -> int:
    """Run the command line. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__)
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"one of {', '.join(STEPS)}")
    parser.add_argument("--rehearse", action="store_true", help="the same steps, tiny, on a CPU; no figures")
    parser.add_argument("--again", action="store_true", help="forget earlier results")
    parser.add_argument("--page", action="store_true", help="write the results into docs/benchmarks.md")
    parser.add_argument(
        "--seconds", type=float, default=math.inf, help="end after this time; a later call continues"
    )
    parser.add_argument("--results", type=Path, default=None, help="default: build/gpu, build/gpu-rehearsal")
    parser.add_argument("--work", type=Path, default=None, help="models and stores; default: RESULTS-work")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    results_folder = options.results or ROOT / "build" / ("gpu-rehearsal" if options.rehearse else "gpu")
    work = options.work or results_folder.with_name(f"{results_folder.name}-work")
    if unknown := [step for step in options.steps if step not in STEPS]:
        parser.error(f"no step {', '.join(unknown)}; the steps are {', '.join(STEPS)}")
    names = options.steps or list(STEPS)
    folders = Folders(results_folder, work)
    if options.alone:
        return _run(names[0], folders, options.rehearse)
    if options.again:
        shutil.rmtree(results_folder, ignore_errors=True)
    if not options.rehearse and not _has_gpu():
        print(
            "gpu-smoke: PyTorch finds no CUDA device here; --rehearse runs the steps on a CPU",
            file=sys.stderr,
        )
        return 1
    results = _run_all(names, folders, options.rehearse, time.monotonic() + options.seconds)
    if options.page:
        put(PAGE, BEGIN, [_sheet(name, result) for name, result in results.items()], _circumstances(results))
    return int(any(result["outcome"] == FAILED for result in results.values()))


@dataclass(frozen=True)
class Folders:
    """Where results are kept, which are small, and models and stores, which are not."""

    results: Path
    work: Path

    def result(self, step: str) -> Path:
        """The file with the result of a step."""
        return self.results / f"{step}.json"


def _run_all(names: Iterable[str], folders: Folders, rehearse: bool, end: float) -> dict[str, dict[str, Any]]:
    """The results of the steps that have one, or get one before `end`, in seconds of the monotonic clock."""
    results: dict[str, dict[str, Any]] = {}
    for name in names:
        result = _result(name, folders, rehearse, end)
        if result is None:
            print(f"{name} and the steps after it: no time left; the same command continues", flush=True)
            break
        results[name] = result
        if name in GUARDS and result["outcome"] == FAILED:
            print(f"{name} failed: figures of the steps after it would mislead, so none begins", flush=True)
            break
    return results


def _result(name: str, folders: Folders, rehearse: bool, end: float) -> dict[str, Any] | None:
    """The kept result of a step, or that of running it now; None if there is no time for it."""
    file = folders.result(name)
    if not file.exists():
        begin = time.monotonic()
        left = end - begin
        if left < MIN_STEP_SECONDS:
            return None
        _start(name, folders, rehearse, left)
        if not file.exists():
            return None
        print(f"{name}: {time.monotonic() - begin:.0f} s", flush=True)
    result: dict[str, Any] = json.loads(file.read_text())
    print(f"{name}: {json.dumps(result, ensure_ascii=False)}", flush=True)
    return result


def _start(name: str, folders: Folders, rehearse: bool, left: float) -> None:
    """Run a step in a process of its own; it has no result if it had less time than a step may take."""
    file = folders.result(name)
    command = [
        *(sys.executable, "-m", "tests.gpu", name, "--alone"),
        *("--results", str(folders.results), "--work", str(folders.work)),
        *(["--rehearse"] if rehearse else []),
    ]
    # Packages that this machine lacks can be in PYTHONPATH.
    given = os.environ.get("PYTHONPATH")
    path = [*([given] if given else []), str(ROOT / "trainer_image"), str(ROOT)]
    process = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": os.pathsep.join(path)}, start_new_session=True
    )
    limit = math.inf if rehearse else MAX_STEP_SECONDS
    allowed = min(left, limit)
    try:
        process.wait(None if allowed == math.inf else allowed)
    except subprocess.TimeoutExpired:
        # Its trainer processes too: they would keep the memory of the device.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if left >= limit:
            _write(file, {"outcome": FAILED, "why": f"not finished after {MAX_STEP_SECONDS} s"})
        return
    if not file.exists():
        _write(file, {"outcome": FAILED, "why": "the process ended without a result; see its output"})


def _run(name: str, folders: Folders, rehearse: bool) -> int:
    """Run one step in this process and write its result."""
    folder = folders.work / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    scene = Scene(folder, "cpu" if rehearse else "cuda", rehearse, adapt())
    try:
        result: dict[str, Any] = {"outcome": PASSED, "figures": STEPS[name](scene)}
    except StepNotPossible as error:
        result = {"outcome": "not run", "why": str(error)}
    except GPUCheckFailed as error:
        result = {"outcome": FAILED, "why": str(error), "figures": error.figures}
    except Exception as error:  # noqa: BLE001 - the others can still run
        traceback.print_exc()
        result = {"outcome": FAILED, "why": f"{type(error).__name__}: {error}"}
    shutil.rmtree(folder, ignore_errors=True)
    _write(folders.result(name), result)
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
    why = {"why": result["why"].partition("\n")[0]} if "why" in result else {}
    figures = {**why, **result.get("figures", {})}
    return Sheet(
        f"{name}: {result['outcome']}", ("", ""), tuple((key, str(value)) for key, value in figures.items())
    )


def _circumstances(results: dict[str, dict[str, Any]]) -> str:
    figures = results.get("machine", {}).get("figures", {})
    return ", ".join(f"{key} {value}" for key, value in figures.items())


if __name__ == "__main__":
    sys.exit(main())
