"""How the processes of a run find each other: a TCPStore of rank 0, to which the others connect.

It listens on loopback. Those of other pods come through a tunnel, with the run's key (see `tunnel`).

A pod may start minutes before the others, and start again while they still are in the session that it left.
So each process says hello with a number of its own, and rank 0 opens the session with those that it has seen.
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
"""Within these all processes have to come: a new node may have to start, and pull the image."""
POLL_SECONDS: Final = 0.5
RETRY_SECONDS: Final = 2.0
"""Between two tries to connect; a name may be unknown for as long as somebody's cache says so."""
RESULT_POLL_SECONDS: Final = 15.0
"""Between two looks for a result that the others have left."""
LOG_SECONDS: Final = 30.0
CONNECT_SECONDS: Final = 5.0
STORE_TIMEOUT: Final = timedelta(seconds=60)

SESSION: Final = "session"

logger = logging.getLogger(__name__)


class Rendezvous:
    """One process's way to the session."""

    def __init__(
        self,
        process: ProcessRank,
        stop: threading.Event,
        finished: Callable[[], bool],
        patience: float = PATIENCE_SECONDS,
        key: bytes | None = None,
    ) -> None:
        """`key`: of the run; None where it has one pod, or an older operator made no key."""
        self._process = process
        self._stop = stop
        self._finished = finished
        self._patience = patience
        self._deadline = time.monotonic() + patience
        self._logged_at = float("-inf")
        self._looked_at = float("-inf")
        self._number = uuid.uuid4().hex
        self._tunneled = key is not None and process.size > process.local_size
        self._key = key or b""
        self._tunnel = (
            TunnelClient(process.host, process.port, self._key)
            if self._tunneled and not process.is_main_process
            else None
        )
        self._port = process.port if self._tunnel is None else self._tunnel.port

    def meet(self) -> TCPStore:
        """The store of a session that all processes are in.

        Raises PeerLost where they do not come in time, Preempted, GroupFinished.
        """
        return self._lead() if self._process.is_main_process else self._follow()

    def _lead(self) -> TCPStore:
        store = None
        while store is None:
            try:
                store = self._open()
            except (DistError, OSError) as error:
                self._wait(f"port {self._process.port} cannot be opened yet ({error})")
        store.set(_hello(0), self._number)
        others = range(1, self._process.size)
        while missing := [rank for rank in others if not store.check([_hello(rank)])]:
            self._wait(
                f"{len(missing)} of {self._process.size} processes have not come yet: rank"
                f" {', '.join(map(str, missing))}",
                POLL_SECONDS,
            )
        store.set(SESSION, ",".join(store.get(_hello(rank)).decode() for rank in range(self._process.size)))
        return store

    def _open(self) -> TCPStore:
        """The store of the run. Raises DistError, OSError."""
        one_pod = self._process.size == self._process.local_size
        if not self._tunneled and not one_pod:
            return TCPStore(
                LOOPBACK, self._port, is_master=True, wait_for_workers=False, timeout=STORE_TIMEOUT
            )
        with ExitStack() as undo:
            public = undo.enter_context(listen(self._process.port)) if self._tunneled else None
            listener = undo.enter_context(socket.create_server((LOOPBACK, 0 if public else self._port)))
            self._port = listener.getsockname()[1]
            # Without a socket of its own it would listen on all addresses, whatever host it is given.
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
        """Another connection to the store. Raises DistError."""
        return TCPStore(
            LOOPBACK if self._tunneled else self._process.host,
            self._port,
            is_master=False,
            wait_for_workers=False,
            timeout=STORE_TIMEOUT,
        )

    def _follow(self) -> TCPStore:
        while True:
            problem = self._unreachable()
            if problem is None:
                try:
                    store = self.connect()
                    if self._joined(store):
                        return store
                    problem = "it is in the session of a process that this one replaces"
                except DistError as error:
                    problem = str(error).partition("\n")[0]
            self._wait(f"rank 0 at {self._process.host}:{self._process.port}: {problem}")

    def _joined(self, store: TCPStore) -> bool:
        """Whether the session that opens has this process in it; if it is an older one, that one ends."""
        rank = self._process.rank
        store.set(_hello(rank), self._number)
        try:
            while not store.check([SESSION]):
                self._wait("rank 0 waits for other processes", POLL_SECONDS)
        except Preempted:
            store.delete_key(_hello(rank))
            raise
        if store.get(SESSION).decode().split(",")[rank] == self._number:
            return True
        store.set(left(rank), "lost")
        return False

    def _unreachable(self) -> str | None:
        """Why rank 0 cannot be connected to; the store's own connecting cannot be interrupted."""
        try:
            with self._tunnel.connect() if self._tunnel else self._direct():
                return None
        except (OSError, PeerNotAuthenticated) as error:
            return str(error)

    def _direct(self) -> socket.socket:
        return socket.create_connection((self._process.host, self._process.port), CONNECT_SECONDS)

    def _wait(self, for_what: str, seconds: float = RETRY_SECONDS) -> None:
        now = time.monotonic()
        if now >= self._deadline:
            raise PeerLost(
                f"after {self._patience:g} seconds {for_what}; see why those pods do not run, and whether the"
                " pods of a run may reach each other"
            )
        if now - self._logged_at >= LOG_SECONDS:
            self._logged_at = now
            logger.info("waiting: %s", for_what)
        if not self._process.is_main_process and now - self._looked_at >= RESULT_POLL_SECONDS:
            self._looked_at = now
            if self._finished():
                raise GroupFinished
        if self._stop.wait(seconds):
            raise Preempted


def left(rank: int) -> str:
    """The key under which a process says how it left the session."""
    return f"left/{rank}"


def _hello(rank: int) -> str:
    return f"hello/{rank}"
