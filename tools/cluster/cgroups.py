# SPDX-License-Identifier: Apache-2.0
"""The cgroup of a cluster in every hierarchy of cgroup version 1 and in version 2.

The kubelet puts pods below it. The cluster's own processes enter it in one hierarchy, so that all their
descendants can be found there later, even if all other records are lost.
"""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tools.cluster.commands import ClusterError, becomes_true

_ROOT: Final = Path("/sys/fs/cgroup")
_REAPED_WITHIN_SECONDS: Final = 10
_GONE: Final = (errno.ENOENT, errno.ENODEV)


def create(name: str) -> None:
    """Create the cgroup `name`, such as /finetune, with all controllers of its parent.

    Raises:
        ClusterError: a hierarchy is not writable.
    """
    for hierarchy in _hierarchies():
        try:
            _create_in(hierarchy, hierarchy / name.lstrip("/"))
        except OSError as error:
            raise ClusterError(f"cannot create the cgroup {name} in {hierarchy}: {error.strerror}") from error


def _create_in(hierarchy: Path, group: Path) -> None:
    if _is_version_2(hierarchy):
        _delegate(hierarchy)
        group.mkdir(exist_ok=True)
        _delegate(group)
        return
    group.mkdir(exist_ok=True)
    # In version 1 a new cpuset is empty, and no process can enter it.
    for setting in ("cpuset.cpus", "cpuset.mems"):
        if (hierarchy / setting).exists():
            (group / setting).write_text((hierarchy / setting).read_text())


def _delegate(group: Path) -> None:
    for controller in (group / "cgroup.controllers").read_text().split():
        (group / "cgroup.subtree_control").write_text(f"+{controller}")


def enter(name: str, pid: int) -> None:
    """Move a process below the cgroup `name`; its later descendants start there."""
    hierarchy = next((path for path in _hierarchies() if _is_version_2(path)), _ROOT / "pids")
    # In version 2 a group whose children have controllers may not contain processes.
    group = hierarchy / name.lstrip("/") / "system"
    group.mkdir(exist_ok=True)
    (group / "cgroup.procs").write_text(str(pid))


def processes(name: str) -> set[int]:
    """Pids in the cgroup and below it."""
    pids: set[int] = set()
    for group in _existing(name):
        for folder in [group, *_below(group)]:
            try:
                pids.update(int(pid) for pid in (folder / "cgroup.procs").read_text().split())
            except OSError as error:
                if error.errno not in _GONE:
                    raise
    return pids


def remove(name: str) -> None:
    """Wait until the last process is reaped, and remove the cgroup and all below it.

    Raises:
        ClusterError: it still contains processes.
    """
    if not becomes_true(lambda: _try_to_remove(name), _REAPED_WITHIN_SECONDS):
        raise ClusterError(
            f"the cgroup {name} still contains the processes {sorted(processes(name))}: end them and retry"
        )


def _try_to_remove(name: str) -> bool:
    removed = True
    for group in _existing(name):
        for folder in [*reversed(_below(group)), group]:
            removed &= _rmdir(folder)
    return removed


def _below(group: Path) -> list[Path]:
    """All cgroups below `group`, parents first."""
    return [Path(folder) for folder, _, _ in os.walk(group)][1:]


def _rmdir(group: Path) -> bool:
    try:
        group.rmdir()
    except OSError as error:
        if error.errno in _GONE:
            return True
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


def _existing(name: str) -> Iterator[Path]:
    for hierarchy in _hierarchies():
        group = hierarchy / name.lstrip("/")
        if group.is_dir():
            yield group


def _hierarchies() -> list[Path]:
    if _is_version_2(_ROOT):
        return [_ROOT]
    return [
        path for path in sorted(_ROOT.iterdir()) if (path / "cgroup.procs").exists() and not path.is_symlink()
    ]


def _is_version_2(hierarchy: Path) -> bool:
    return (hierarchy / "cgroup.controllers").exists()
