# SPDX-License-Identifier: Apache-2.0
"""Network, mount and process namespaces in which a second cluster runs next to the first.

Addresses, ports, links and packet filters there belong to the second cluster only, and no outside network is
reachable: programs and images must already be on this machine. When the first process of the namespaces ends,
the kernel ends all others.
"""

from collections.abc import Sequence
from typing import Final

from tools.cluster.layout import ISOLATED, SECOND
from tools.cluster.toolchain import system_program

# The shell is the first process, which must reap processes whose parents have ended.
_FIRST: Final = 'ip link set lo up && "$@"; exit $?'


def isolated(command: Sequence[str], name: str = SECOND) -> list[str]:
    """Command line that runs `command` as root in its own namespaces, with the same exit status.

    `name` is the local cluster there, for all of tools/ and for the end-to-end tests. It does not run yet;
    the command must start and stop it.
    """
    return [
        system_program("unshare", "util-linux"), "--net", "--pid", "--fork", "--kill-child", "--mount-proc",
        "env", f"{ISOLATED}={name}", "sh", "-c", _FIRST, "sh", *command,
    ]  # fmt: skip
