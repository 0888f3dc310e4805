# SPDX-License-Identifier: Apache-2.0
"""A seccomp filter for a process that runs code of a user: no sockets, no programs, no other processes.

The kernel refuses the calls, also those of native code. The filter is a small program for the kernel's
classic BPF machine (seccomp(2), and Documentation/userspace-api/seccomp_filter.rst of Linux). It is installed
with prctl, because the libraries for it need libseccomp, which the image does not have.
"""

import ctypes
import errno
import platform
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

PR_SET_DUMPABLE: Final = 4
PR_SET_SECCOMP: Final = 22
PR_SET_NO_NEW_PRIVS: Final = 38
PR_SET_PDEATHSIG: Final = 1
SECCOMP_MODE_FILTER: Final = 2
SECCOMP_RET_KILL_PROCESS: Final = 0x80000000
SECCOMP_RET_ERRNO: Final = 0x00050000
SECCOMP_RET_ALLOW: Final = 0x7FFF0000
CLONE_THREAD: Final = 0x00010000

LOAD: Final = 0x20
"""BPF_LD | BPF_W | BPF_ABS: load a word of `struct seccomp_data`."""
JUMP_IF_EQUAL: Final = 0x15
JUMP_IF_GREATER_OR_EQUAL: Final = 0x35
JUMP_IF_ANY_BIT: Final = 0x45
RETURN: Final = 0x06

NUMBER_OFFSET: Final = 0
ARCHITECTURE_OFFSET: Final = 4
FIRST_ARGUMENT_OFFSET: Final = 16
"""Of its low half, because both architectures are little-endian."""


@dataclass(frozen=True)
class Calls:
    """System calls of an architecture."""

    architecture: int
    """AUDIT_ARCH_… of linux/audit.h."""
    clone: int
    clone3: int
    refused: tuple[int, ...]
    first_foreign: int | None = None
    """The first number of another calling convention of the architecture."""


_EVERYWHERE: Final = (425, 426, 427, 438)
"""io_uring_setup, io_uring_enter and io_uring_register, which can open sockets; pidfd_getfd."""
CALLS: Final[Mapping[str, Calls]] = {
    "x86_64": Calls(
        architecture=0xC000003E,
        clone=56,
        clone3=435,
        # socket, socketpair, fork, vfork, execve, ptrace, process_vm_readv, process_vm_writev, execveat
        refused=(41, 53, 57, 58, 59, 101, 310, 311, 322, *_EVERYWHERE),
        first_foreign=0x40000000,
    ),
    "aarch64": Calls(
        architecture=0xC00000B7,
        clone=220,
        clone3=435,
        # ptrace, socket, socketpair, execve, process_vm_readv, process_vm_writev, execveat
        refused=(117, 198, 199, 221, 270, 271, 281, *_EVERYWHERE),
    ),
}


class _Program(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def confine(machine: str = "") -> None:
    """Refuse the calls in this process from now on, with EPERM. Threads stay possible; nothing undoes it.

    Raises OSError if the kernel has no such filters, or for an unknown machine.
    """
    machine = machine or platform.machine()
    calls = CALLS.get(machine)
    if calls is None:
        raise OSError(f"there is no list of system calls for {machine}")
    instructions = program(calls)
    buffer = ctypes.create_string_buffer(b"".join(instructions))
    # Both objects must live until the call.
    filter_program = _Program(len(instructions), ctypes.addressof(buffer))
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    _prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(filter_program))


def forbid_inspection() -> None:
    """Keep other processes of this user from reading the memory and the environment of this one."""
    _prctl(PR_SET_DUMPABLE, 0)


def end_with_parent(signal: int) -> None:
    """Let the kernel send this process a signal when its parent ends."""
    _prctl(PR_SET_PDEATHSIG, signal)


def program(calls: Calls) -> list[bytes]:
    """The instructions of the filter."""
    refuse = _statement(RETURN, SECCOMP_RET_ERRNO | errno.EPERM)
    instructions = [
        _statement(LOAD, ARCHITECTURE_OFFSET),
        _jump(JUMP_IF_EQUAL, calls.architecture, 1, 0),
        _statement(RETURN, SECCOMP_RET_KILL_PROCESS),
        _statement(LOAD, NUMBER_OFFSET),
    ]
    if calls.first_foreign is not None:
        instructions += [_jump(JUMP_IF_GREATER_OR_EQUAL, calls.first_foreign, 0, 1), refuse]
    for number in calls.refused:
        instructions += [_jump(JUMP_IF_EQUAL, number, 0, 1), refuse]
    # A filter cannot see the flags of clone3; without it, the C library uses clone.
    instructions += [
        _jump(JUMP_IF_EQUAL, calls.clone3, 0, 1),
        _statement(RETURN, SECCOMP_RET_ERRNO | errno.ENOSYS),
        _jump(JUMP_IF_EQUAL, calls.clone, 0, 3),
        _statement(LOAD, FIRST_ARGUMENT_OFFSET),
        _jump(JUMP_IF_ANY_BIT, CLONE_THREAD, 1, 0),
        refuse,
        _statement(RETURN, SECCOMP_RET_ALLOW),
    ]
    return instructions


def _statement(code: int, value: int) -> bytes:
    return _jump(code, value, 0, 0)


def _jump(code: int, value: int, if_true: int, if_false: int) -> bytes:
    """`struct sock_filter`, with the numbers of instructions to skip."""
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _prctl(option: int, *arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    padded = [ctypes.c_ulong(each) for each in (*arguments, 0, 0, 0, 0)[:4]]
    if libc.prctl(option, *padded):
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}) failed")
