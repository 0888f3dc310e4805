# SPDX-License-Identifier: Apache-2.0
"""Rendezvous: how the processes of a run find each other, through a TCPStore that rank 0 serves.

The store listens on loopback. Processes in other pods connect through a tunnel with the run's key (see
`tunnel`).

A pod may start minutes before the other pods, and may restart while they are still in the session that it
left. So each process registers with a random id, and rank 0 opens the session with the ids that it has seen.
"""

import logging
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from typing import Final

from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]

from finetune_trainer.distributed.group import GroupFinished, PeerLost
from finetune_trainer.distributed.rank import LOOPBACK, ProcessRank
from finetune_trainer.distributed.tunnel import PeerNotAuthenticated, TunnelClient, TunnelServer, listen
from finetune_trainer.runtime.failure import Preempted

PATIENCE_SECONDS: Final = 900.0
"""Time for all processes to connect; a new node may have to start and pull the image."""
POLL_SECONDS: Final = 0.5
RETRY_SECONDS: Final = 2.0
"""Interval between connection attempts; a DNS cache may not know a new name for a while."""
RESULT_POLL_SECONDS: Final = 15.0
"""Interval between checks whether the run already has a result."""
LOG_SECONDS: Final = 30.0
CONNECT_SECONDS: Final = 5.0
STORE_TIMEOUT: Final = timedelta(seconds=60)

SESSION: Final = "session"

logger = logging.getLogger(__name__)


class Rendezvous:
    """The rendezvous of one process."""

    def __init__(
        self,
        process: ProcessRank,
        stop: threading.Event,
        finished: Callable[[], bool],
        patience_seconds: float = PATIENCE_SECONDS,
        key: bytes | None = None,
    ) -> None:
        """`key` is that of the run; None if the run has one pod."""
        self._process = process
        self._stop = stop
        self._finished = finished
        self._patience_seconds = patience_seconds
        self._deadline = time.monotonic() + patience_seconds
        self._logged_at = float("-inf")
        self._checked_at = float("-inf")
        self._id = uuid.uuid4().hex
        self._tunneled = key is not None and process.size > process.local_size
        self._key = key or b""
        self._tunnel = (
            TunnelClient(process.host, process.port, self._key)
            if self._tunneled and not process.is_main_process
            else None
        )
        self._port = process.port if self._tunnel is None else self._tunnel.port

    def meet(self) -> TCPStore:
        """Return the store of a session that all processes have joined.

        Raises PeerLost if they do not connect in time, Preempted, GroupFinished.
        """
        return self._lead() if self._process.is_main_process else self._follow()

    def _lead(self) -> TCPStore:
        store = None
        while store is None:
            try:
                store = self._open()
            except (DistError, OSError) as error:
                self._wait(f"port {self._process.port} cannot be opened yet ({error})")
        store.set(_id_key(0), self._id)
        others = range(1, self._process.size)
        while missing := [rank for rank in others if not store.check([_id_key(rank)])]:
            self._wait(
                f"{len(missing)} of {self._process.size} processes have not connected: rank"
                f" {', '.join(map(str, missing))}",
                POLL_SECONDS,
            )
        store.set(SESSION, ",".join(store.get(_id_key(rank)).decode() for rank in range(self._process.size)))
        return store

    def _open(self) -> TCPStore:
        """Serve the store. Raises DistError, OSError."""
        one_pod = self._process.size == self._process.local_size
        if not self._tunneled and not one_pod:
            return TCPStore(
                LOOPBACK, self._port, is_master=True, wait_for_workers=False, timeout=STORE_TIMEOUT
            )
        with ExitStack() as undo:
            public = undo.enter_context(listen(self._process.port)) if self._tunneled else None
            listener = undo.enter_context(socket.create_server((LOOPBACK, 0 if public else self._port)))
            self._port = listener.getsockname()[1]
            # Without a socket of its own, TCPStore would listen on all addresses, whatever its host.
            store = TCPStore(
                LOOPBACK,
                self._port,
                is_master=True,
                wait_for_workers=False,
                timeout=STORE_TIMEOUT,
                master_listen_fd=listener.detach(),
            )
            undo.pop_all()
        if public is not None:
            TunnelServer(public, self._key, self._port)
        return store

    def connect(self) -> TCPStore:
        """Open another connection to the store. Raises DistError."""
        return TCPStore(
            LOOPBACK if self._tunneled else self._process.host,
            self._port,
            is_master=False,
            wait_for_workers=False,
            timeout=STORE_TIMEOUT,
        )

    def _follow(self) -> TCPStore:
        while True:
            problem = self._find_connection_problem()
            if problem is None:
                try:
                    store = self.connect()
                    if self._joined(store):
                        return store
                    problem = "it is still in the session of the process that this process replaces"
                except DistError as error:
                    problem = str(error).partition("\n")[0]
            self._wait(f"rank 0 at {self._process.host}:{self._process.port}: {problem}")

    def _joined(self, store: TCPStore) -> bool:
        """Whether the open session includes this process. If it is an older session, end it."""
        rank = self._process.rank
        store.set(_id_key(rank), self._id)
        try:
            while not store.check([SESSION]):
                self._wait("rank 0 waits for other processes", POLL_SECONDS)
        except Preempted:
            store.delete_key(_id_key(rank))
            raise
        if store.get(SESSION).decode().split(",")[rank] == self._id:
            return True
        store.set(exit_key(rank), "lost")
        return False

    def _find_connection_problem(self) -> str | None:
        """Why rank 0 is unreachable. Checked first: connecting a TCPStore cannot be interrupted."""
        try:
            with self._tunnel.connect() if self._tunnel else self._connect_directly():
                return None
        except (OSError, PeerNotAuthenticated) as error:
            return str(error)

    def _connect_directly(self) -> socket.socket:
        return socket.create_connection((self._process.host, self._process.port), CONNECT_SECONDS)

    def _wait(self, reason: str, seconds: float = RETRY_SECONDS) -> None:
        now = time.monotonic()
        if now >= self._deadline:
            raise PeerLost(
                f"after {self._patience_seconds:g} seconds {reason}. Check why those pods do not run, and"
                " whether a NetworkPolicy keeps the pods of the run from connecting to each other"
            )
        if now - self._logged_at >= LOG_SECONDS:
            self._logged_at = now
            logger.info("waiting: %s", reason)
        if not self._process.is_main_process and now - self._checked_at >= RESULT_POLL_SECONDS:
            self._checked_at = now
            if self._finished():
                raise GroupFinished
        if self._stop.wait(seconds):
            raise Preempted


def exit_key(rank: int) -> str:
    """The store's key for how a process left the session."""
    return f"left/{rank}"


def _id_key(rank: int) -> str:
    return f"hello/{rank}"
