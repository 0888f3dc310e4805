# SPDX-License-Identifier: Apache-2.0
"""Choose free ports on loopback, for a cluster or for one process."""

import json
import random
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from tools.cluster.errors import ClusterError
from tools.cluster.layout import LOOPBACK

# Below the kernel's range for outgoing connections, which might take a port before its server listens.
_CANDIDATES: Final = range(20000, 32000)


def choose_ports(names: Sequence[str], fixed: Mapping[str, int], record: Path) -> dict[str, int]:
    """Choose free ports for `names` that have no `fixed` one; write all ports to `record` and return them.

    Raises:
        ClusterError: there are too few free ports.
    """
    names = [name for name in names if name not in fixed]
    free: list[int] = []
    for port in random.SystemRandom().sample(_CANDIDATES, len(_CANDIDATES)):
        if len(free) == len(names):
            break
        if _is_free(port):
            free.append(port)
    if len(free) < len(names):
        raise ClusterError(
            f"fewer than {len(names)} ports are free on {LOOPBACK}: stop programs that listen there"
        )
    ports = dict(zip(names, free, strict=True)) | dict(fixed)
    record.write_text(json.dumps(ports))
    return ports


def free_port() -> int:
    """A port that no process listens on now."""
    chance = random.SystemRandom()
    while not _is_free(port := chance.choice(_CANDIDATES)):
        pass
    return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((str(LOOPBACK), port))
        except OSError:
            return False
    return True
