# SPDX-License-Identifier: Apache-2.0
"""Makes what only Linux has fail in a Python process, as on macOS: with this folder on PYTHONPATH."""

import os
import signal
import socket
import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

ONLY_ON_LINUX = {
    os: (
        "sched_getaffinity",
        "sched_setaffinity",
        "pidfd_open",
        "pipe2",
        "eventfd",
        "memfd_create",
        "posix_fadvise",
        "posix_fallocate",
        "copy_file_range",
        "splice",
        "getrandom",
        "O_TMPFILE",
        "O_PATH",
    ),
    signal: ("pidfd_send_signal",),
    socket: ("SOCK_CLOEXEC", "SO_PEERCRED"),
}
FOLDERS = ("/proc", "/sys")
"""File systems of Linux."""


def refuse(path: object) -> None:
    """Raise FileNotFoundError if a path is in a file system of Linux."""
    if isinstance(path, str | bytes | os.PathLike) and os.fsdecode(path).startswith(FOLDERS):
        raise FileNotFoundError(2, "No such file or directory", os.fsdecode(path))


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    if event in {"open", "os.listdir", "os.scandir", "os.symlink"}:
        refuse(arguments[0])
    elif event == "socket.__new__" and arguments[2] == socket.SOCK_SEQPACKET:
        raise OSError(93, "Protocol not supported")


def _refusing(function: Callable[P, T]) -> Callable[P, T]:
    @wraps(function)
    def checked(*arguments: P.args, **options: P.kwargs) -> T:
        refuse(arguments[0])
        return function(*arguments, **options)

    return checked


for _module, _names in ONLY_ON_LINUX.items():
    for _name in _names:
        if hasattr(_module, _name):
            delattr(_module, _name)
os.stat = _refusing(os.stat)
os.lstat = _refusing(os.lstat)
sys.addaudithook(_audit)
