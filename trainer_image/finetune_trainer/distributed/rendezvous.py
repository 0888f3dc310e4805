# SPDX-License-Identifier: Apache-2.0
"""How the processes of a run find each other: the TCPStore of rank 0, and an authenticated tunnel to it.

A pod may start minutes before the other pods, and may restart while they are still in the session that it
left. So each process registers with a random id, and rank 0 opens the session with the ids that it has seen.

torch's TCPStore listens on all addresses and authenticates no one: whoever reaches it can join the run. So it
listens on loopback, and a TunnelServer accepts connections from other pods. Both ends prove that they have
the run's key, each by an HMAC over the other end's random challenge, so a recorded exchange cannot be
replayed (ISO/IEC 9798-4, mutual three-pass authentication). After that, bytes are forwarded unchanged: the
key keeps strangers out, but does not protect against someone who can modify packets in transit.
"""

import hmac
import logging
import secrets
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Final

from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]

from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.distributed.process_group import LOOPBACK, GroupFinished, PeerLost, ProcessRank
from finetune_trainer.runtime.termination import Preempted, StageFailure

CHALLENGE_BYTES: Final = 32
PROOF_BYTES: Final = sha256().digest_size
MIN_KEY_BYTES: Final = 16
HANDSHAKE_SECONDS: Final = 10.0
"""Time for the other end to authenticate."""
MAX_PENDING_CONNECTIONS: Final = 256
"""Limit of connections that have not authenticated yet; further ones are closed."""
MAX_PENDING_PER_ADDRESS: Final = 32
"""Limit of those from one address, so that one pod outside of the run cannot keep all its processes out.

The processes of one pod connect at the same time, and each of them opens several connections.
"""
CHUNK_BYTES: Final = 1 << 16

logger = logging.getLogger(__name__)


class PeerNotAuthenticated(Exception):
    """The other end did not prove that it has the run's key."""


def read_key(path: Path) -> bytes:
    """Read the run's key. Raises StageFailure (INVALID_CONFIG) if it cannot be read or is too short."""
    try:
        key = path.read_bytes()
    except OSError as error:
        raise StageFailure(
            FailureReason.INVALID_CONFIG,
            f"{path}: the key of this run's processes cannot be read ({error.strerror}). Its Secret was"
            " deleted: create a new run",
        ) from error
    if len(key) < MIN_KEY_BYTES:
        raise StageFailure(
            FailureReason.INVALID_CONFIG,
            f"{path}: the key of this run's processes has {len(key)} bytes, but needs {MIN_KEY_BYTES}: create"
            " a new run",
        )
    return key


def listen(port: int) -> socket.socket:
    """Open a socket on all addresses, including IPv6 if available. Raises OSError."""
    dual = socket.has_dualstack_ipv6()
    return socket.create_server(
        ("", port), family=socket.AF_INET6 if dual else socket.AF_INET, dualstack_ipv6=dual
    )


class TunnelServer:
    """Rank 0's end: forwards authenticated connections to `port` on loopback."""

    def __init__(self, listener: socket.socket, key: bytes, port: int) -> None:
        self._key = key
        self._port = port
        self._pending: Counter[str] = Counter()
        """Number of connections that have not authenticated yet, by address."""
        self._lock = threading.Lock()
        self._listener = listener
        _thread(self._accept, "tunnel")

    def _accept(self) -> None:
        while True:
            connection, address = self._listener.accept()
            if self._admits(address[0]):
                _thread(self._serve, "tunnel: connection", connection, address[0])
            else:
                connection.close()

    def _admits(self, host: str) -> bool:
        """Count a connection, unless this or all addresses have too many of them."""
        with self._lock:
            is_full = self._pending.total() >= MAX_PENDING_CONNECTIONS
            if is_full or self._pending[host] >= MAX_PENDING_PER_ADDRESS:
                return False
            self._pending[host] += 1
            return True

    def _release(self, host: str) -> None:
        with self._lock:
            self._pending[host] -= 1
            if not self._pending[host]:
                del self._pending[host]

    def _serve(self, connection: socket.socket, host: str) -> None:
        try:
            connection.settimeout(HANDSHAKE_SECONDS)
            challenge = secrets.token_bytes(CHALLENGE_BYTES)
            connection.sendall(challenge)
            peer_challenge = _receive(connection, CHALLENGE_BYTES)
            _check(
                _receive(connection, PROOF_BYTES), _proof(self._key, b"follower", challenge, peer_challenge)
            )
            connection.sendall(_proof(self._key, b"leader", peer_challenge, challenge))
            store = socket.create_connection((LOOPBACK, self._port), HANDSHAKE_SECONDS)
        except (OSError, PeerNotAuthenticated) as error:
            logger.warning("refused a connection from %s: %s", host, error)
            connection.close()
            return
        finally:
            self._release(host)
        _join(connection, store)


class TunnelClient:
    """Another pod's end: forwards connections to `port` on loopback to rank 0's store."""

    def __init__(self, host: str, port: int, key: bytes) -> None:
        self._host, self._port, self._key = host, port, key
        self._listener = socket.create_server((LOOPBACK, 0))
        self.port: int = self._listener.getsockname()[1]
        _thread(self._accept, "tunnel")

    def connect(self) -> socket.socket:
        """Open a connection to the store. Raises OSError, PeerNotAuthenticated."""
        connection = socket.create_connection((self._host, self._port), HANDSHAKE_SECONDS)
        try:
            challenge = _receive(connection, CHALLENGE_BYTES)
            own_challenge = secrets.token_bytes(CHALLENGE_BYTES)
            connection.sendall(own_challenge + _proof(self._key, b"follower", challenge, own_challenge))
            _check(_receive(connection, PROOF_BYTES), _proof(self._key, b"leader", own_challenge, challenge))
        except BaseException:
            connection.close()
            raise
        return connection

    def _accept(self) -> None:
        while True:
            local, _ = self._listener.accept()
            _thread(self._forward, "tunnel: connection", local)

    def _forward(self, local: socket.socket) -> None:
        try:
            connection = self.connect()
        except (OSError, PeerNotAuthenticated) as error:
            logger.debug("rank 0 cannot be reached: %s", error)
            local.close()
            return
        _join(local, connection)


def _proof(key: bytes, role: bytes, peer_challenge: bytes, own_challenge: bytes) -> bytes:
    return hmac.digest(key, role + peer_challenge + own_challenge, "sha256")


def _check(proof: bytes, expected: bytes) -> None:
    if not hmac.compare_digest(proof, expected):
        raise PeerNotAuthenticated("the other process does not have the key of this run")


def _receive(connection: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size:
        part = connection.recv(size - len(received))
        if not part:
            raise PeerNotAuthenticated("the other process closed the connection before it authenticated")
        received += part
    return received


def _join(one: socket.socket, other: socket.socket) -> None:
    """Forward in both directions until either end closes."""
    for connection in (one, other):
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    _thread(_copy, "forwarding", one, other)
    _copy(other, one)


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while part := source.recv(CHUNK_BYTES):
            target.sendall(part)
    except OSError as error:
        logger.debug("a connection between pods failed: %s", error)
    finally:
        for connection in (source, target):
            _close(connection)


def _close(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError as error:
        logger.debug("the connection is already closed: %s", error)
    connection.close()


def _thread(target: Callable[..., None], name: str, *arguments: object) -> None:
    threading.Thread(target=target, args=arguments, name=name, daemon=True).start()


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
