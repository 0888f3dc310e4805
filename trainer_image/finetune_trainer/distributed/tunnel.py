# SPDX-License-Identifier: Apache-2.0
"""An authenticated tunnel to rank 0's store for processes in other pods.

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
from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Final

from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.distributed.rank import LOOPBACK
from finetune_trainer.runtime.failure import StageFailure

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
