"""Time to read files, and to start the train stage until its first step."""

import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from finetune_trainer.contract.configs.train import TrainConfig
from finetune_trainer.contract.environment import CONFIG_ENV
from tools.bench.errors import BenchError
from tools.bootstrap.uv import ROOT

CHUNK_BYTES: Final = 16 << 20
FIRST_STEP_LOG: Final = " parameters on "
"""Part of the line that the trainer logs when its model, rows and optimizer are ready."""


def forget(files: Iterable[Path]) -> None:
    """Remove the files from the page cache."""
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def seconds_to_read(files: Iterable[Path]) -> float:
    """Time to read files that are not in the page cache, one after the other in large pieces."""
    forget(files)
    buffer = bytearray(CHUNK_BYTES)
    begin = time.perf_counter()
    for file in files:
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass
    return time.perf_counter() - begin


def seconds_to_first_step(config: TrainConfig, more: Mapping[str, str]) -> float:
    """Time from the start of the train stage, with more environment, until it begins its first step.

    Raises BenchError if it ends before.
    """
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "finetune_trainer"],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", CONFIG_ENV: config.to_json(), **more},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines: list[str] = []
    try:
        for line in process.stdout or ():
            lines.append(line)
            if FIRST_STEP_LOG in line:
                return time.perf_counter() - begin
    finally:
        process.kill()
        process.wait()
    raise BenchError(f"the trainer did not begin to train: {''.join(lines)[-2000:]}")
