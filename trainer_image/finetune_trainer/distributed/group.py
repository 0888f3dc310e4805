"""What the processes of a run agree on. The one here is alone, and agrees with itself at no cost."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, TypeVar

T = TypeVar("T")


class PeerLost(Exception):
    """Another process of this run went away; the run goes on when all of them have started again."""


class GroupFinished(Exception):
    """The other processes have ended the run meanwhile, and left its result."""


class Group:
    """The processes that train one run; this is the only one.

    Methods are collective unless they say otherwise: every process calls them, in the same order.
    Raise PeerLost where another process is gone, and Preempted where it was asked to stop before training.
    """

    rank: int = 0
    size: int = 1
    local_rank: int | None = None
    """Among the processes of this pod; None for the only process of a run."""
    local_size: int = 1

    @property
    def is_main_process(self) -> bool:
        """Whether this process speaks for the run: reports, states and result are those of rank 0."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether it is true in any process."""
        return flag

    def all_reduce_sum(self, *values: float) -> list[float]:
        """Each value's sum over all processes, the same to the bit in each of them."""
        return list(values)

    def broadcast(self, number: int) -> int:
        """What the leader gave; what the others gave is not looked at.

        Numbers and bytes only: objects would be unpickled, and what is unpickled can run code.
        """
        return number

    def gather(self, content: bytes) -> list[bytes]:
        """What each process gave, by rank; empty for all but the leader."""
        return [content]

    def share(self, items: Sequence[T], filler: T) -> list[T]:
        """Every `size`-th item from the `rank`-th on, filled up so that all have as many. Not collective."""
        share = list(items[self.rank :: self.size])
        return share + [filler] * (-(-len(items) // self.size) - len(share))

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Raise PeerLost, or Preempted, for what a lost process makes of the block. Not collective."""
        yield

    def end_collectives(self) -> None:
        """There is nothing more to agree on: what is left is the leader's. Not collective."""

    def finish(self) -> None:
        """End together: the leader when its result is written, the others when they know that.

        Raises PeerLost where the leader is gone, Preempted where this process was asked to stop.
        """

    def claim_failure(self) -> bool:
        """Whether this process's failure is the run's; False where another failed before. Not collective."""
        return True


ALONE: Final = Group()
