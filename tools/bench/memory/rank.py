# SPDX-License-Identifier: Apache-2.0
"""python -m tools.bench.memory.rank FOLDER: one process of a run, as in a pod, that records its memory.

Writes one line of JSON per phase into FOLDER. The trainer's config and rank come from the environment.
"""

import json
import os
import runpy
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import torch
from torch.distributed.tensor import DTensor

from finetune_trainer.contract.environment import NODE_RANK_ENV
from finetune_trainer.distributed import distributed_group
from finetune_trainer.train import session
from finetune_trainer.train import trainer as fsdp
from finetune_trainer.train.states import weights
from finetune_trainer.train.states.resume_states import ResumeStates
from finetune_trainer.train.trainer import FullyShardedTrainer

STOP_ENV: Final = "BENCH_STOPS"
"""Set if the run is interrupted after its first save."""
RESET_PEAK: Final = "5"


class Phases:
    """Peak memory of this process in each phase, in bytes above that after the imports."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._imported = _resident("VmRSS")

    def begin(self) -> None:
        """Forget the peak so far."""
        Path("/proc/self/clear_refs").write_text(RESET_PEAK)

    def end(self, phase: str, share: int) -> None:
        """Record the peak since the last `begin`, and the bytes that this process must hold."""
        line = {"phase": phase, "bytes": _resident("VmHWM") - self._imported, "share": share}
        with self._file.open("a") as file:
            file.write(json.dumps(line) + "\n")


def measure(phases: Phases) -> None:
    """Record the phases of the run that follows."""
    trainers: list[FullyShardedTrainer] = []

    def load(wrapped: Callable[..., Any], *arguments: Any) -> Any:
        phases.begin()
        model = wrapped(*arguments)
        phases.end("start", _bytes(model.parameters()))
        return model

    def read_weights(wrapped: Callable[..., Any], *arguments: Any) -> None:
        phases.begin()
        wrapped(*arguments)

    def read_optimizer(wrapped: Callable[..., Any], *arguments: Any) -> None:
        wrapped(*arguments)
        phases.end("resume", _share(arguments[0]))

    def save(wrapped: Callable[..., Any], *arguments: Any) -> None:
        collect = arguments[3]
        trainers[:] = [collect.__self__]
        wrapped(*arguments)
        phases.end("save", _share(trainers[0]))
        if os.environ.get(STOP_ENV):
            os.kill(os.getpid(), signal.SIGTERM)

    def return_freed(wrapped: Callable[[], None]) -> None:
        wrapped()  # what the last step needed
        phases.begin()

    def publish(wrapped: Callable[..., Any], *arguments: Any) -> None:
        phases.begin()
        wrapped(*arguments)
        phases.end("publish", _share(trainers[0]))

    _wrap(session, "trainable_model", load)
    _wrap(FullyShardedTrainer, "_load_from_checkpoint", read_weights)
    _wrap(FullyShardedTrainer, "_load_optimizer_and_scheduler", read_optimizer)
    _wrap(ResumeStates, "begin_save", save)
    _wrap(fsdp, "return_freed_memory", return_freed)
    _wrap(weights, "write_model", publish)


def _wrap(owner: Any, name: str, around: Callable[..., Any]) -> None:
    wrapped = getattr(owner, name)
    setattr(owner, name, lambda *arguments, **settings: around(wrapped, *arguments, **settings))


def _share(trainer: FullyShardedTrainer) -> int:
    """Bytes of the weights and of the optimizer state that this process holds."""
    model: Any = trainer.model
    optimizer: Any = trainer.optimizer
    states = (each for state in optimizer.state.values() for each in state.values())
    return _bytes([*model.parameters(), *states])


def _bytes(tensors: Iterable[Any]) -> int:
    return sum(_local(each).nbytes for each in tensors if isinstance(each, torch.Tensor))


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (kibibytes,) = (line.split()[1] for line in lines if line.startswith(f"{field}:"))
    return int(kibibytes) << 10


if __name__ == "__main__":
    # The stage is imported by now, and the group that it trains in.
    _ = distributed_group
    measure(Phases(Path(sys.argv[1]) / f"rank-{os.environ[NODE_RANK_ENV]}.jsonl"))
    sys.argv = ["finetune_trainer"]
    runpy.run_module("finetune_trainer", run_name="__main__", alter_sys=True)
