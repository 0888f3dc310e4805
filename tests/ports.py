"""Ports for servers of tests."""

import random
import socket

BELOW_CONNECTIONS = range(20_000, 32_000)
"""The kernel gives none of these to a connection, which might take it before its server listens."""


def free_port() -> int:
    """A port of the loopback address that nobody listens on now."""
    while True:
        port = random.choice(BELOW_CONNECTIONS)  # noqa: S311 - no secret
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
