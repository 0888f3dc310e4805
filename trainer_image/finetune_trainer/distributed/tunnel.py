"""The way into rank 0's store for processes of other pods: only with the run's key.

torch's TCPStore listens on all addresses and asks nobody who they are; whoever reaches it can join the run.
So it listens on loopback, and in front of it a TunnelServer takes connections from other pods. Both ends
prove that they have the key, each by an HMAC over the other's random challenge, so that nothing overheard can
be sent again (ISO/IEC 9798-4, mutual three-pass authentication). Then bytes are passed on as they are: the
key keeps strangers out, not somebody who can change packets on their way.
"""

import hmac
import logging
import secrets
import socket
import threading
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Final

from finetune_trainer.contract.outcomes import FailureReason
from finetune_trainer.distributed.rank import LOOPBACK
from finetune_trainer.runtime.failure import StageFailure

CHALLENGE_BYTES: Final = 32
PROOF_BYTES: Final = sha256().digest_size
MIN_KEY_BYTES: Final = 16
HANDSHAKE_SECONDS: Final = 10.0
"""Within these the other end has to prove itself."""
MAX_PENDING_CONNECTIONS: Final = 64
"""Connections that have not proved themselves yet; more are closed."""
CHUNK_BYTES: Final = 1 << 16

logger = logging.getLogger(__name__)


class PeerNotAuthenticated(Exception):
    """The other end did not prove that it has the run's key."""


def read_key(path: Path) -> bytes:
    """The run's key. Raises StageFailure: INVALID_CONFIG where it cannot be read or is too short."""
    try:
        key = path.read_bytes()
    except OSError as error:
        raise StageFailure(
            FailureReason.INVALID_CONFIG,
            f"{path}: the key of this run's processes cannot be read ({error.strerror}); its Secret was"
            " deleted, so make a new run",
        ) from error
    if len(key) < MIN_KEY_BYTES:
        raise StageFailure(
            FailureReason.INVALID_CONFIG,
            f"{path}: the key of this run's processes has {len(key)} bytes and needs {MIN_KEY_BYTES}; make"
            " a new run",
        )
    return key


def listen(port: int) -> socket.socket:
    """A socket on all addresses, of IPv6 too where there is any. Raises OSError."""
    dual = socket.has_dualstack_ipv6()
    return socket.create_server(
        ("", port), family=socket.AF_INET6 if dual else socket.AF_INET, dualstack_ipv6=dual
    )


class TunnelServer:
    """Rank 0's end: what proves itself is passed on to `port` of loopback."""

    def __init__(self, listener: socket.socket, key: bytes, port: int) -> None:
        self._key = key
        self._port = port
        self._pending = threading.BoundedSemaphore(MAX_PENDING_CONNECTIONS)
        self._listener = listener
        _thread(self._accept, "tunnel")

    def _accept(self) -> None:
        while True:
            connection, address = self._listener.accept()
            if self._pending.acquire(blocking=False):
                _thread(self._admit, "tunnel: connection", connection, address[0])
            else:
                connection.close()

    def _admit(self, connection: socket.socket, host: str) -> None:
        try:
            connection.settimeout(HANDSHAKE_SECONDS)
            challenge = secrets.token_bytes(CHALLENGE_BYTES)
            connection.sendall(challenge)
            theirs = _receive(connection, CHALLENGE_BYTES)
            _check(_receive(connection, PROOF_BYTES), _proof(self._key, b"follower", challenge, theirs))
            connection.sendall(_proof(self._key, b"leader", theirs, challenge))
            store = socket.create_connection((LOOPBACK, self._port), HANDSHAKE_SECONDS)
        except (OSError, PeerNotAuthenticated) as error:
            logger.warning("a connection from %s is refused: %s", host, error)
            connection.close()
            return
        finally:
            self._pending.release()
        _join(connection, store)


class TunnelClient:
    """Another pod's end: what connects to `port` of loopback reaches rank 0's store through its tunnel."""

    def __init__(self, host: str, port: int, key: bytes) -> None:
        self._host, self._port, self._key = host, port, key
        self._listener = socket.create_server((LOOPBACK, 0))
        self.port: int = self._listener.getsockname()[1]
        _thread(self._accept, "tunnel")

    def connect(self) -> socket.socket:
        """A connection to the store. Raises OSError, PeerNotAuthenticated."""
        connection = socket.create_connection((self._host, self._port), HANDSHAKE_SECONDS)
        try:
            challenge = _receive(connection, CHALLENGE_BYTES)
            mine = secrets.token_bytes(CHALLENGE_BYTES)
            connection.sendall(mine + _proof(self._key, b"follower", challenge, mine))
            _check(_receive(connection, PROOF_BYTES), _proof(self._key, b"leader", mine, challenge))
        except BaseException:
            connection.close()
            raise
        return connection

    def _accept(self) -> None:
        while True:
            local, _ = self._listener.accept()
            _thread(self._pass_on, "tunnel: connection", local)

    def _pass_on(self, local: socket.socket) -> None:
        try:
            connection = self.connect()
        except (OSError, PeerNotAuthenticated) as error:
            logger.debug("rank 0 is not reached: %s", error)
            local.close()
            return
        _join(local, connection)


def _proof(key: bytes, who: bytes, challenge: bytes, mine: bytes) -> bytes:
    return hmac.digest(key, who + challenge + mine, "sha256")


def _check(given: bytes, expected: bytes) -> None:
    if not hmac.compare_digest(given, expected):
        raise PeerNotAuthenticated("it does not have the key of this run")


def _receive(connection: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size:
        part = connection.recv(size - len(received))
        if not part:
            raise PeerNotAuthenticated(
                "it closed the connection before it proved that it has the key of this run"
            )
        received += part
    return received


def _join(one: socket.socket, other: socket.socket) -> None:
    """Pass on in both directions until either end closes."""
    for connection in (one, other):
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    _thread(_copy, "passing on", one, other)
    _copy(other, one)


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while part := source.recv(CHUNK_BYTES):
            target.sendall(part)
    except OSError as error:
        logger.debug("a connection between pods broke: %s", error)
    finally:
        for connection in (source, target):
            _shut(connection)


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError as error:
        logger.debug("it is closed already: %s", error)
    connection.close()


def _thread(target: Callable[..., None], name: str, *arguments: object) -> None:
    threading.Thread(target=target, args=arguments, name=name, daemon=True).start()
