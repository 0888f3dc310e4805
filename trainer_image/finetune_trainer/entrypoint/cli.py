# SPDX-License-Identifier: Apache-2.0
"""The command line of a trainer process: one config in, one result out. See `contract`."""

import argparse
import os
from pathlib import Path

from finetune_trainer.contract.environment import CONFIG_ENV
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.entrypoint import stageprocess
from finetune_trainer.runtime import configuration, logs
from finetune_trainer.runtime.failure import StageFailure


def run_command_line() -> int:
    """Run the stage of the config in the command line or the environment. Returns the exit code."""
    # No stage compiles a model, and bitsandbytes takes seconds to load PyTorch's compiler. The Triton kernels
    # that TRL launches on a GPU do not need it.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    # Batches of varying length fragment the memory of a GPU in segments of fixed size.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    # PyTorch's OpenMP (libgomp) reads it when it is loaded. Threads that spin while they wait for each other
    # take processor time from the endpoints of the node, and make a step on shared processors five times as
    # long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    logs.configure()
    parser = argparse.ArgumentParser(
        prog="finetune-trainer", description="Run one stage of a fine-tuning run."
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help=f"JSON config; default: the value of {CONFIG_ENV}"
    )
    arguments = parser.parse_args()
    try:
        text = _config_text(arguments.config)
    except StageFailure as failure:
        return stageprocess.refuse(None, failure)
    try:
        config = configuration.parse(text)
    except StageFailure as failure:
        return stageprocess.refuse(text, failure)
    return stageprocess.run(config)


def _config_text(path: Path | None) -> str | None:
    if path is None:
        return os.environ.get(CONFIG_ENV)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StageFailure(FailureReason.INVALID_CONFIG, f"--config {path}: {error}") from error
