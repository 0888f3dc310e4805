# SPDX-License-Identifier: Apache-2.0
"""A group of several processes over torch.distributed: gloo between CPUs, NCCL between GPUs.

Its `PeerMonitor` detects that another process is gone, even while this process hangs in a collective with it.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Final

import torch
import torch.distributed as dist
from torch.distributed import DistError, PrefixStore, TCPStore  # type: ignore[attr-defined]
from typing_extensions import override

from finetune_trainer.contract.configs import TrainConfig
from finetune_trainer.contract.vocabulary import ExitCode
from finetune_trainer.distributed.process_group import (
    LOCAL_RANK_ENV,
    PORT_ENV,
    SILENCE_FILE_ENV,
    Group,
    PeerLost,
    ProcessRank,
)
from finetune_trainer.distributed.rendezvous import POLL_SECONDS, Rendezvous, exit_key, read_key
from finetune_trainer.model.device import choose_device, is_collective_error
from finetune_trainer.runtime.termination import Preempted

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


RESULT: Final = "result"
FAILED: Final = "failed"
HEAD_START_SECONDS: Final = 5.0
"""Rank 0 may claim a failure this much earlier, because its message can name the saved states."""
FAREWELL_SECONDS: Final = 30.0
"""Time for the other processes to see that the run has its result."""
QUICK_POLL_SECONDS: Final = 0.05
NCCL_MIN_TIMEOUT: Final = timedelta(minutes=10)
"""Longer than a PeerMonitor takes."""


class DistributedGroup(Group):
    """One process of a session of several."""

    def __init__(
        self,
        process: ProcessRank,
        store: TCPStore,
        peers: PeerMonitor,
        stop: threading.Event,
        finished: Callable[[], bool],
    ) -> None:
        self.rank = process.rank
        self.size = process.size
        self.local_rank = process.local_rank
        self.local_size = process.local_size
        self._store = store
        self._monitor = peers
        self._stop = stop
        self._finished = finished

    @override
    def any(self, flag: bool) -> bool:
        return self.all_reduce_sum(flag)[0] > 0

    @override
    def all_reduce_sum(self, *values: float) -> list[float]:
        mine = torch.tensor(values, dtype=torch.float64)
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(parts, mine)
        # Add in rank order: a backend's own reduction may add in a different order in each process.
        return [sum(column) for column in zip(*(part.tolist() for part in parts), strict=True)]

    @override
    def broadcast(self, number: int) -> int:
        value = torch.tensor([number])
        dist.broadcast(value, src=0)
        return int(value)

    @override
    def gather(self, content: bytes) -> list[bytes]:
        mine = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        size = torch.tensor([len(mine)])
        sizes = [torch.empty_like(size) for _ in range(self.size)]
        dist.all_gather(sizes, size)
        max_size = int(max(sizes))
        padded = torch.nn.functional.pad(mine, (0, max_size - len(mine)))
        parts = [torch.empty_like(padded) for _ in range(self.size)] if self.is_main_process else None
        dist.gather(padded, parts, dst=0)
        return [bytes(part[: int(length)].tolist()) for part, length in zip(parts or [], sizes, strict=False)]

    @override
    def post(self, key: str, content: bytes) -> None:
        self._store.set(key, content.decode())

    @override
    def take_post(self, key: str) -> bytes | None:
        if not self._store.check([key]):
            return None
        content: bytes = self._store.get(key)
        self._store.delete_key(key)
        return content

    @override
    @contextmanager
    def guarded(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if not is_collective_error(error):
                raise
            if PREEMPTED in self._exit_reasons():
                raise Preempted from error
            raise PeerLost(f"communication with another process failed: {str(error)[:500]}") from error

    @override
    def end_collectives(self) -> None:
        self._monitor.end_collectives()

    @override
    def finish(self) -> None:
        if self.is_main_process:
            self._store.set(RESULT, "")
            self._linger(lambda: len(self._exit_reasons()) == self.size - 1, FAREWELL_SECONDS)
            return
        logger.info("training is done; waiting until rank 0 has written the result")
        try:
            while not self._store.check([RESULT]):
                if self._stop.wait(POLL_SECONDS):
                    raise Preempted
        except dist.DistError as error:
            if not self._finished():
                raise PeerLost("rank 0 was lost before it wrote the result of the run") from error

    @override
    def claim_failure(self) -> bool:
        try:
            if not self.is_main_process:
                self._linger(lambda: self._store.check([FAILED]), HEAD_START_SECONDS)
            first: bool = self._store.compare_set(FAILED, "", str(self.rank)).decode() == str(self.rank)
            self._store.set(_failure_known(self.rank), "")
            if self.is_main_process:  # its process serves the store that the other processes ask
                acknowledged = [_failure_known(rank) for rank in range(self.size)]
                self._linger(lambda: self._store.check(acknowledged), HEAD_START_SECONDS)
        except dist.DistError as error:
            logger.debug("rank 0 is gone: %s", error)
            return True
        return first

    def leave(self, reason: str) -> None:
        """Record in the store how this process ended."""
        self._monitor.close()
        try:
            self._store.set(exit_key(self.rank), reason)
        except dist.DistError as error:
            logger.debug("rank 0 is gone: %s", error)

    def _exit_reasons(self) -> list[str]:
        """How other processes left; empty if rank 0 is gone."""
        others = [rank for rank in range(self.size) if rank != self.rank]
        try:
            return [
                self._store.get(exit_key(rank)).decode()
                for rank in others
                if self._store.check([exit_key(rank)])
            ]
        except dist.DistError as error:
            logger.debug("rank 0 is gone: %s", error)
            return []

    def _linger(self, done: Callable[[], bool], seconds: float) -> None:
        """Wait until `done` returns true, for at most `seconds`."""
        deadline = time.monotonic() + seconds
        while not done() and time.monotonic() < deadline:
            time.sleep(QUICK_POLL_SECONDS)


@contextmanager
def session(
    config: TrainConfig, process: ProcessRank, stop: threading.Event, finished: Callable[[], bool]
) -> Iterator[Group]:
    """Meet the other processes; the group exists as long as the block runs.

    Raises PeerLost, Preempted, GroupFinished; StageFailure (INVALID_CONFIG) if the run's key is unreadable.
    """
    logger.info("rank %d of %d: waiting for the other processes", process.rank, process.size)
    key = None if config.peer_key_path is None else read_key(Path(config.peer_key_path))
    rendezvous = Rendezvous(process, stop, finished, key=key)
    store = rendezvous.meet()
    logger.info("all %d processes are connected", process.size)
    silence_file = os.environ.get(SILENCE_FILE_ENV)
    monitor = PeerMonitor(
        rendezvous.connect(),
        process,
        stop,
        silence_file=None if silence_file is None else Path(silence_file),
    )
    group = DistributedGroup(process, store, monitor, stop, finished)
    reason = LOST
    try:
        with group.guarded():
            _connect(process, store, timedelta(seconds=2 * config.step_timeout_seconds))
            yield group
        reason = ENDED
    except Preempted:
        reason = PREEMPTED
        raise
    finally:
        group.leave(reason)
        if reason == ENDED:  # with lost processes it may block forever
            dist.destroy_process_group()


def _connect(process: ProcessRank, store: TCPStore, timeout: timedelta) -> None:
    """Create the process group, with the environment that accelerate expects."""
    os.environ.update(
        {
            "RANK": str(process.rank),
            "WORLD_SIZE": str(process.size),
            LOCAL_RANK_ENV: str(process.local_rank),
            "LOCAL_WORLD_SIZE": str(process.local_size),
            "MASTER_ADDR": process.host,
            PORT_ENV: str(process.port),
        }
    )
    device = choose_device(process.local_rank, process.local_size)
    # Otherwise accelerate derives the number of threads from the node's processors.
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    if device.type == "cuda":
        torch.cuda.set_device(device)
        for name, value in nccl_environment(timeout).items():
            os.environ.setdefault(name, value)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=PrefixStore("group", store),
        rank=process.rank,
        world_size=process.size,
        timeout=timeout,
    )


def nccl_environment(timeout: timedelta) -> dict[str, str]:
    """Environment in which NCCL does not abort a process that waits for a peer, which would be a failure.

    Instead, the PeerMonitor ends the process with the exit code for a lost peer, and the StepWatchdog ends it
    if all peers are alive. NCCL's own monitor, which aborts a process whose NCCL thread hangs, comes last.
    Not tested on several GPUs.
    """
    return {
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
        "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC": str(int(max(timeout, NCCL_MIN_TIMEOUT).total_seconds())),
    }


def _failure_known(rank: int) -> str:
    return f"knows/{rank}"
