"""Namespaces of network, mounts and processes, in which a second cluster runs beside the first.

Addresses, ports, links and packet filters are the cluster's alone there, and there is no way out: programs
and images have to be on this machine before. With the first process of the namespaces the kernel ends all
others.
"""

from collections.abc import Sequence
from typing import Final

from tools.cluster.layout import ISOLATED, SECOND
from tools.cluster.toolchain import system_program

# The shell is the first process, which has to reap those whose parents have ended.
_FIRST: Final = 'ip link set lo up && "$@"; exit $?'


def isolated(command: Sequence[str], name: str = SECOND) -> list[str]:
    """The command line that runs `command` in namespaces of its own, as root; its exit status is the same.

    There `name` is the local cluster, for all of tools/ and for the end-to-end tests: nothing of it runs yet,
    and whoever starts it has to end it.
    """
    return [
        system_program("unshare", "util-linux"), "--net", "--pid", "--fork", "--kill-child", "--mount-proc",
        "env", f"{ISOLATED}={name}", "sh", "-c", _FIRST, "sh", *command,
    ]  # fmt: skip
