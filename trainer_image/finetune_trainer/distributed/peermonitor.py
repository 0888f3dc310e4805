# SPDX-License-Identifier: Apache-2.0
"""Detects that another process is gone, even while this process hangs in a collective with it."""

import logging
import os
import threading
import time
from pathlib import Path
from typing import Final

from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]

from finetune_trainer.contract.vocabulary import ExitCode
from finetune_trainer.distributed.rank import ProcessRank
from finetune_trainer.distributed.rendezvous import exit_key

HEARTBEAT_SECONDS: Final = 5.0
SILENT_SECONDS: Final = 15.0
"""A process without a heartbeat for this long is silent: an abort now is probably a consequence."""
HEARTBEAT_TIMEOUT_SECONDS: Final = 60.0
"""A process without a heartbeat for this long is lost."""
GRACE_SECONDS: Final = 10.0
"""Time for this process to fail by itself, as most collectives do when a connection breaks."""

PREEMPTED: Final = "preempted"
LOST: Final = "lost"
ENDED: Final = "ended"

logger = logging.getLogger(__name__)


class PeerMonitor:
    """A thread with its own store connection: sends heartbeats and checks those of the other processes."""

    def __init__(
        self,
        store: TCPStore,
        process: ProcessRank,
        stop: threading.Event,
        *,
        interval_seconds: float = HEARTBEAT_SECONDS,
        silent_seconds: float = SILENT_SECONDS,
        timeout_seconds: float = HEARTBEAT_TIMEOUT_SECONDS,
        grace_seconds: float = GRACE_SECONDS,
        silence_file: Path | None = None,
    ) -> None:
        """`silence_file` exists as long as another process is silent or lost."""
        self._store = store
        self._process = process
        self._stop = stop
        self._interval_seconds = interval_seconds
        self._silent_seconds = silent_seconds
        self._timeout_seconds = timeout_seconds
        self._grace_seconds = grace_seconds
        self._silence_file = silence_file
        self._was_silent = False
        now = time.monotonic()
        self._watched = set(range(process.size)) - {process.rank}
        self._last_beats = dict.fromkeys(self._watched, (0, now))
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peers", daemon=True)
        self._thread.start()

    def end_collectives(self) -> None:
        """From now on watch only rank 0; rank 0 watches no one."""
        self._watched = set() if self._process.is_main_process else {0}

    def close(self) -> None:
        """Stop watching."""
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(self._interval_seconds):
            try:
                found = self._find_lost_peer()
            except DistError as error:
                # Rank 0 serves the store. Once it has its result, it waits for no one.
                found = (
                    None
                    if self._process.is_main_process
                    else (LOST, f"rank 0 does not respond ({_first_line(error)})")
                )
            self._record_silence(found[1] if found is not None else self._describe_silence())
            if found is not None and not self._ended.is_set():
                self._end(*found)
                return

    def _find_lost_peer(self) -> tuple[str, str] | None:
        """How the first lost process ended, and a message; None while all are alive."""
        self._store.add(_beat(self._process.rank), 1)
        for rank in sorted(self._watched):
            if self._store.check([exit_key(rank)]):
                reason = self._store.get(exit_key(rank)).decode()
                if reason != ENDED:
                    return reason, f"rank {rank} has exited"
            beats, now = self._store.add(_beat(rank), 0), time.monotonic()
            if beats != self._last_beats[rank][0]:
                self._last_beats[rank] = (beats, now)
            elif now - self._last_beats[rank][1] > self._timeout_seconds:
                return LOST, f"rank {rank} has sent no heartbeat for {self._timeout_seconds:g} seconds"
        return None

    def _describe_silence(self) -> str | None:
        """Which process has been silent for longest; None if all send heartbeats."""
        beats = {rank: self._last_beats[rank][1] for rank in self._watched}
        rank = min(beats, key=beats.__getitem__, default=None)
        if rank is None or time.monotonic() - beats[rank] <= self._silent_seconds:
            return None
        return f"rank {rank} has sent no heartbeat for {self._silent_seconds:g} seconds"

    def _record_silence(self, silence: str | None) -> None:
        if (silence is not None) == self._was_silent or self._silence_file is None:
            return
        self._was_silent = silence is not None
        if silence is None:
            self._silence_file.unlink(missing_ok=True)
            return
        self._silence_file.touch()
        logger.warning("%s", silence)

    def _end(self, reason: str, message: str) -> None:
        code = ExitCode.PREEMPTED_SAVED if reason == PREEMPTED else ExitCode.PEER_LOST
        if code == ExitCode.PREEMPTED_SAVED:
            self._stop.set()
        if self._ended.wait(self._grace_seconds):
            return
        logger.warning("%s: this process exits; training resumes when all processes have restarted", message)
        logging.shutdown()
        os._exit(code)


def _beat(rank: int) -> str:
    return f"beat/{rank}"


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:200]
