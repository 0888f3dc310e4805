# SPDX-License-Identifier: Apache-2.0
"""Time to read files, to start the train stage until its first step, and to start a serving pod.

The base models have random weights, in the shapes of small Llamas.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

import httpx

from finetune_trainer.contract.configs import TrainConfig
from finetune_trainer.contract.environment import CONFIG_ENV
from finetune_trainer.contract.serving import FetchConfig, FillConfig, ServeConfig
from tools.bench.page import BenchError
from tools.bootstrap.uv import ROOT
from tools.models import llama
from tools.models.folder import cached

SIZES: Final = ("1B", "3B")


def random_model(size: str) -> Path:
    """The folder of the model: bfloat16 safetensors, and the tokenizer of the tiny model."""
    return cached(
        f"random-{size.lower()}",
        Path(llama.__file__).read_bytes(),
        lambda target: llama.write_random(target, llama.LLAMA[size]),
    )


CHUNK_BYTES: Final = 16 << 20
POLL_SECONDS: Final = 0.02
MAX_START_SECONDS: Final = 600.0
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


def seconds_to_first_step(
    config: TrainConfig, more: Mapping[str, str], module: str = "finetune_trainer"
) -> float:
    """Time from the start of the train stage, with more environment, until it begins its first step.

    `module` is the module that runs the stage.

    Raises BenchError if it ends before.
    """
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", module],
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


def seconds_of(config: FetchConfig | FillConfig) -> float:
    """Time that the process of this config takes. Raises BenchError if it fails."""
    begin = time.perf_counter()
    ended = subprocess.run(
        [sys.executable, "-m", "finetune_trainer"],
        cwd=ROOT,
        env={**os.environ, CONFIG_ENV: config.to_json()},
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode:
        raise BenchError(f"{config.stage} failed: {ended.stderr[-2000:]}")
    return time.perf_counter() - begin


def seconds_to_first_token(config: Callable[[int], ServeConfig]) -> float:
    """Time from the start of the built-in engine until it has generated a token for a request.

    Args:
        config: returns the config of the engine with this port.

    Raises:
        BenchError: the engine does not answer.
    """
    # Imported late: the GPU checks measure on machines without the packages of the test cluster.
    from tools.cluster.layout import free_port

    port = free_port()
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "finetune_trainer"],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", CONFIG_ENV: config(port).to_json()},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    request = {"model": "base", "prompt": "Hello", "max_tokens": 1}
    try:
        while process.poll() is None and time.perf_counter() - begin < MAX_START_SECONDS:
            try:
                answer = httpx.post(
                    f"http://127.0.0.1:{port}/v1/completions", json=request, timeout=MAX_START_SECONDS
                )
            except httpx.TransportError:
                time.sleep(POLL_SECONDS)
                continue
            if answer.status_code == httpx.codes.OK:
                return time.perf_counter() - begin
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                raise BenchError(f"the engine answered {answer.status_code}: {answer.text[:500]}")
            time.sleep(POLL_SECONDS)
    finally:
        process.kill()
        process.wait()
    raise BenchError("the engine did not answer")
