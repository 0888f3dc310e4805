# SPDX-License-Identifier: Apache-2.0
"""Send one query to a name server, to check that the cluster's DNS and Services work."""

import secrets
import socket
import struct
from ipaddress import IPv4Address
from typing import Final

_PORT: Final = 53
_ADDRESS_RECORD: Final = 1
_INTERNET: Final = 1
_RECURSION_DESIRED: Final = 0x0100
_POINTER: Final = 0xC0
_TIMEOUT_SECONDS: Final = 1.0


def resolve(server: IPv4Address, name: str) -> IPv4Address | None:
    """First address of `name` from `server` (RFC 1035); None if there is no such answer within 1 s."""
    query = secrets.token_bytes(2) + struct.pack(">5H", _RECURSION_DESIRED, 1, 0, 0, 0)
    for label in name.rstrip(".").split("."):
        query += bytes([len(label)]) + label.encode("ascii")
    query += struct.pack(">BHH", 0, _ADDRESS_RECORD, _INTERNET)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as connection:
        connection.settimeout(_TIMEOUT_SECONDS)
        try:
            connection.connect((str(server), _PORT))
            connection.send(query)
            answer = connection.recv(512)
        except OSError:
            return None
    return _first_address(query, answer)


def _first_address(query: bytes, answer: bytes) -> IPv4Address | None:
    """Address of the first record of `answer`; None if it does not answer `query` or is not of type A."""
    answers = struct.unpack_from(">H", answer, 6)[0] if len(answer) > len(query) else 0
    if answer[:2] != query[:2] or not answers:
        return None
    # The record follows the header and the question, and begins with its name.
    position = _after_name(answer, len(query))
    kind, _, _, length = struct.unpack_from(">HHIH", answer, position)
    if kind != _ADDRESS_RECORD or length != 4:
        return None
    return IPv4Address(answer[position + 10 : position + 14])


def _after_name(message: bytes, position: int) -> int:
    """Position after the name at `position`, which ends with an empty label or a pointer of two bytes."""
    while message[position]:
        if message[position] >= _POINTER:
            return position + 2
        position += 1 + message[position]
    return position + 1
