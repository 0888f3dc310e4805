# SPDX-License-Identifier: Apache-2.0
"""`make try`: a real model from rows to a served answer on this machine, without root and without a cluster.

It runs `finetune run` on examples/ticket-routing with Gemma 3 270M, asks the endpoint one question, and ends.
With SERVE=1 the endpoint stays until Ctrl-C. Called again, it serves what was trained before.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from finetune_client.endpoint import Endpoint, ask
from tools.bootstrap.uv import ROOT
from tools.models.gemma import gemma

EXAMPLE: Final = ROOT / "examples" / "ticket-routing"
FILES: Final = tuple(EXAMPLE / f"{name}.yaml" for name in ("dataset", "finetunejob", "inferencedeployment"))
FOLDER: Final = ROOT / "build" / "try"
MODEL: Final = "gemma-3-270m"
QUESTION: Final = "The courier left my parcel with a neighbour."
SERVING: Final = re.compile(r"serving (\S+) at (\S+)")
STAY: Final = "SERVE"
"""Environment variable: if it is set, the endpoint stays."""


def base_model(folder: Path) -> Path:
    """A folder with the folder of the base model. It has real files: links out of a volume are refused."""
    target = folder / "models" / MODEL
    if not target.exists():
        partial = target.with_suffix(".part")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(gemma(), partial)
        partial.rename(target)
    return target.parent


def main() -> int:
    """Run the example, print the answer, and return the exit code of the run."""
    started = time.monotonic()
    command = [sys.executable, "-m", "finetune_client", "run", *map(str, FILES)]
    command += ["--claim", f"models={base_model(FOLDER)}", "--folder", str(FOLDER / "runs")]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as program:
        if program.stdout is None:
            raise RuntimeError("the program has no output")
        try:
            for line in program.stdout:
                print(line, end="", flush=True)
                if (found := SERVING.search(line)) is None:
                    continue
                answer = ask(Endpoint(found[2], "this machine").client(), found[1], QUESTION)
                print(f"   question: {QUESTION}\n   answer:   {answer}")
                print(f"   {time.monotonic() - started:.0f} s until this answer", flush=True)
                if not os.environ.get(STAY):
                    program.send_signal(signal.SIGINT)
        except KeyboardInterrupt:
            # The terminal has sent it to the program too, which saves its state and ends.
            for line in program.stdout:
                print(line, end="", flush=True)
    return program.returncode


if __name__ == "__main__":
    sys.exit(main())
