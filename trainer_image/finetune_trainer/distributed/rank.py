# SPDX-License-Identifier: Apache-2.0
"""The rank of this process among the processes of a run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

from finetune_trainer.contract.configs import TrainConfig
from finetune_trainer.contract.environment import NODE_RANK_ENV, RENDEZVOUS_PORT
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.runtime.failure import StageFailure

LOCAL_RANK_ENV: Final = "LOCAL_RANK"
PORT_ENV: Final = "MASTER_PORT"
"""PyTorch's name. If the variable is absent, the processes meet at `RENDEZVOUS_PORT`."""
SILENCE_FILE_ENV: Final = "FINETUNE_SILENCE_FILE"
"""Path of a file that a process keeps as long as another process is silent, for its launcher."""
LOOPBACK: Final = "127.0.0.1"


@dataclass(frozen=True)
class ProcessRank:
    """Global rank `rank` of `size` processes, and `local_rank` of the `local_size` processes in its pod."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    host: str
    """Host of rank 0."""
    port: int

    @property
    def is_main_process(self) -> bool:
        """Whether this is rank 0, which writes reports, states and the result of the run."""
        return self.rank == 0

    @classmethod
    def of(cls, config: TrainConfig, environ: Mapping[str, str]) -> Self:
        """Derive the rank from the config and the pod's environment. Raises StageFailure (INVALID_CONFIG)."""
        size = config.nodes * config.devices
        if config.hyperparameters.processes != size:
            raise StageFailure(
                FailureReason.INVALID_CONFIG,
                f"hyperparameters.processes: {config.hyperparameters.processes}, but {config.nodes} nodes"
                f" with {config.devices} devices each need {size} processes. A run cannot change its number"
                " of processes: create a new run",
            )
        local_rank = _index(environ, LOCAL_RANK_ENV, config.devices) if config.devices > 1 else 0
        node_rank = _index(environ, NODE_RANK_ENV, config.nodes) if config.nodes > 1 else 0
        if config.nodes > 1 and config.coordinator is None:
            raise StageFailure(
                FailureReason.INVALID_CONFIG,
                f"coordinator is missing; a run with nodes: {config.nodes} needs it",
            )
        return cls(
            rank=node_rank * config.devices + local_rank,
            size=size,
            local_rank=local_rank,
            local_size=config.devices,
            host=config.coordinator if config.coordinator and node_rank > 0 else LOOPBACK,
            port=int(environ.get(PORT_ENV, RENDEZVOUS_PORT)),
        )


def _index(environ: Mapping[str, str], name: str, count: int) -> int:
    text = environ.get(name, "")
    if not text.isdecimal() or int(text) >= count:
        raise StageFailure(
            FailureReason.INVALID_CONFIG,
            f"the environment variable {name} is {text!r}, but must be a number below {count}; pods that"
            " train together must belong to an Indexed Job",
        )
    return int(text)
