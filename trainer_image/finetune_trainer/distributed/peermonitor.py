"""Notices that another process is gone, also where this one hangs in an exchange with it."""

import logging
import os
import threading
import time
from typing import Final

from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]

from finetune_trainer.contract.outcomes import ExitCode
from finetune_trainer.distributed.rank import ProcessRank
from finetune_trainer.distributed.rendezvous import left

HEARTBEAT_SECONDS: Final = 5.0
HEARTBEAT_TIMEOUT_SECONDS: Final = 60.0
"""A process without a heartbeat for so long is lost."""
GRACE_SECONDS: Final = 10.0
"""For this process to notice by itself, as most exchanges do when a connection breaks."""

PREEMPTED: Final = "preempted"
LOST: Final = "lost"
ENDED: Final = "ended"

logger = logging.getLogger(__name__)


class PeerMonitor:
    """A thread with its own connection: it tells the others that this process lives, and watches them."""

    def __init__(
        self,
        store: TCPStore,
        process: ProcessRank,
        stop: threading.Event,
        *,
        beat: float = HEARTBEAT_SECONDS,
        silent: float = HEARTBEAT_TIMEOUT_SECONDS,
        grace: float = GRACE_SECONDS,
    ) -> None:
        self._store = store
        self._process = process
        self._stop = stop
        self._beat = beat
        self._silent = silent
        self._grace = grace
        now = time.monotonic()
        self._watched = set(range(process.size)) - {process.rank}
        self._heard = dict.fromkeys(self._watched, (0, now))
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peers", daemon=True)
        self._thread.start()

    def end_collectives(self) -> None:
        """From now on only the leader is needed, and it needs nobody."""
        self._watched = set() if self._process.is_main_process else {0}

    def close(self) -> None:
        """Stop watching."""
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(self._beat):
            try:
                found = self._look()
            except DistError as error:
                # The leader's process has the store. When it has its result, nobody is waited for.
                found = (
                    None
                    if self._process.is_main_process
                    else (LOST, f"rank 0 does not answer ({_first_line(error)})")
                )
            if found is not None and not self._ended.is_set():
                self._end(*found)
                return

    def _look(self) -> tuple[str, str] | None:
        """How the first process left that is gone, and in words."""
        self._store.add(_beat(self._process.rank), 1)
        for rank in sorted(self._watched):
            if self._store.check([left(rank)]):
                how = self._store.get(left(rank)).decode()
                if how != ENDED:
                    return how, f"rank {rank} has left"
            beats, since = self._store.add(_beat(rank), 0), time.monotonic()
            if beats != self._heard[rank][0]:
                self._heard[rank] = (beats, since)
            elif since - self._heard[rank][1] > self._silent:
                return LOST, f"rank {rank} has been silent for {self._silent:g} seconds"
        return None

    def _end(self, how: str, why: str) -> None:
        code = ExitCode.PREEMPTED_SAVED if how == PREEMPTED else ExitCode.PEER_LOST
        if code == ExitCode.PREEMPTED_SAVED:
            self._stop.set()
        if self._ended.wait(self._grace):
            return
        logger.warning("%s: this process ends, and goes on when all have started again", why)
        logging.shutdown()
        os._exit(code)


def _beat(rank: int) -> str:
    return f"beat/{rank}"


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:200]
