# SPDX-License-Identifier: Apache-2.0
"""The processes of a run as one of them sees them: its rank, and the collectives between them.

`Group` is the group of a single process, at no cost. `distributed_group` has that of several processes.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Self, TypeVar

from finetune_trainer.contract.configs import TrainConfig
from finetune_trainer.contract.environment import NODE_RANK_ENV, RENDEZVOUS_PORT
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.runtime.termination import StageFailure

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


T = TypeVar("T")


class PeerLost(Exception):
    """Another process of this run is gone. The run resumes when all processes have restarted."""


class GroupFinished(Exception):
    """The other processes have already finished the run and written its result."""


class Group:
    """The processes that train one run; here, this process only.

    Methods are collective unless their docstring says otherwise: every process calls them in the same order.
    They raise PeerLost if another process is gone, and Preempted if that process was stopped by a signal.
    """

    rank: int = 0
    size: int = 1
    local_rank: int | None = None
    """Rank among the processes of this pod; None for the only process of a run."""
    local_size: int = 1

    @property
    def is_main_process(self) -> bool:
        """Whether this is rank 0, which writes reports, states and the result of the run."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true in any process."""
        return flag

    def all_reduce_sum(self, *values: float) -> list[float]:
        """Sum each value over all processes; the sums are bit-identical in every process."""
        return list(values)

    def broadcast(self, number: int) -> int:
        """Return the number that rank 0 passed; the other processes' arguments are ignored.

        Collectives exchange numbers and bytes only, because unpickling objects can run code.
        """
        return number

    def gather(self, content: bytes) -> list[bytes]:
        """Return the content of each process on rank 0, ordered by rank; an empty list elsewhere."""
        return [content]

    def post(self, key: str, content: bytes) -> None:
        """Make `content` available to rank 0. Not collective, and callable by any thread."""

    def take_post(self, key: str) -> bytes | None:
        """Return and remove what a process posted; None before it posts. As `post`, for rank 0."""
        raise KeyError(key)  # a single process posts nothing

    def share(self, items: Sequence[T], filler: T) -> list[T]:
        """Every `size`-th item from index `rank`, padded with `filler` to equal length. Not collective."""
        share = list(items[self.rank :: self.size])
        return share + [filler] * (-(-len(items) // self.size) - len(share))

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Turn errors that a lost process causes in the block into PeerLost or Preempted. Not collective."""
        yield

    def end_collectives(self) -> None:
        """Declare that no collective follows: the remaining work is that of rank 0. Not collective."""

    def finish(self) -> None:
        """End together: rank 0 after it wrote the result, the other processes when they know that.

        Raises PeerLost if rank 0 is gone, Preempted if this process is stopped by a signal.
        """

    def claim_failure(self) -> bool:
        """Make this process's failure the run's; False if another process failed first. Not collective."""
        return True


ALONE: Final = Group()
