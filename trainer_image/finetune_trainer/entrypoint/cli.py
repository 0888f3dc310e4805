"""The command line of a trainer process: one config in, one result out. See `contract`."""

import argparse
import os
from pathlib import Path

from finetune_trainer.contract.environment import CONFIG_ENV
from finetune_trainer.contract.outcomes import FailureReason
from finetune_trainer.entrypoint import stageprocess
from finetune_trainer.runtime import configuration, logs
from finetune_trainer.runtime.failure import StageFailure


def run() -> int:
    """Run what the config of the command line or the environment says; returns the exit code."""
    # No model is compiled in a pod, and PyTorch's compiler takes bitsandbytes seconds to load. The Triton
    # kernels that TRL launches on a GPU do without it.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    logs.configure()
    parser = argparse.ArgumentParser(prog="finetune-trainer", description="Run one stage of a fine-tuning.")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help=f"JSON config; without it the variable {CONFIG_ENV}"
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
