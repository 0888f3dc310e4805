# SPDX-License-Identifier: Apache-2.0
"""Names of the folders and files of a run's states."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from finetune_trainer.distributed.process_group import Group

STATE: Final = "state"
BEST: Final = "best"
KEPT_STEPS: Final = "kept"
PREFIX: Final = "step-"

LEDGER: Final = "ledger.json"
TRAINER_STATE: Final = "trainer_state.json"

ROW_LOSSES: Final = "row_losses.json"
"""The validation loss by row of the best weights, in their folder. It is not published with them."""

SHARD: Final = re.compile(r"shard-\d{5}-of-(?P<size>\d{5})\.safetensors")
RANDOM_NUMBERS: Final = "rng_state"


def folder_name(parent: str, step: int) -> str:
    """Name of a folder of a step."""
    return f"{parent}/{PREFIX}{step}"


def shard_name(group: Group) -> str:
    """Name of the file with this process's rows of all tensors."""
    return f"shard-{group.rank:05d}-of-{group.size:05d}.safetensors"


def random_numbers_name(rank: int, size: int) -> str:
    """Name of the file with the random number generators of a process; transformers uses the same."""
    return f"{RANDOM_NUMBERS}.pth" if size == 1 else f"{RANDOM_NUMBERS}_{rank}.pth"


def is_sharded(folder: Path) -> bool:
    """Whether a saved state has one file of tensors per process."""
    return any(SHARD.fullmatch(path.name) for path in folder.iterdir())


def needed_by(group: Group, names: Iterable[str]) -> Callable[[str], bool]:
    """Return a filter for the files of a state that this process reads.

    If the state was saved by another number of processes, each process reads the files of all.
    """
    sizes = {int(match["size"]) for name in names if (match := SHARD.fullmatch(name))}
    if sizes != {group.size}:
        return lambda _: True
    own = {shard_name(group), random_numbers_name(group.rank, group.size)}
    return lambda name: name in own or not (SHARD.fullmatch(name) or name.startswith(RANDOM_NUMBERS))
