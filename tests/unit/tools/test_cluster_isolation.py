# SPDX-License-Identifier: Apache-2.0
"""Commands in isolated namespaces, and the settings that a teardown from outside restores."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import eventually
from tools.cluster import host as host_module
from tools.cluster.commands import ClusterError
from tools.cluster.host import Host
from tools.cluster.linux_namespaces import isolated
from tools.cluster.toolchain import system_program

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces take root")


@root_only
def test_an_isolated_command_has_a_cluster_name_and_a_network_of_its_own_and_its_status_is_returned() -> None:
    script = 'echo $ISOLATED_CLUSTER; ip -brief link | cut -d " " -f 1; exit 7'
    done = subprocess.run(
        isolated(["sh", "-c", script], "other"), capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["other", "lo"], done.stderr
    assert done.returncode == 7


@root_only
@pytest.mark.parametrize("end", ["by itself", "killed"])
def test_what_an_isolated_command_has_started_ends_with_it(tmp_path: Path, end: str) -> None:
    file = tmp_path / "started"
    last = "sleep 600" if end == "killed" else ":"
    script = f"setsid sh -c 'touch {file}; exec tail -F {file}' & while [ ! -e {file} ]; do :; done; {last}"
    with subprocess.Popen(isolated(["sh", "-c", script])) as command:
        if end == "killed":
            eventually("it has started a process", lambda: _running(str(file)))
            command.send_signal(signal.SIGKILL)
        command.wait(10)

    eventually("the process has ended", lambda: file.exists() and not _running(str(file)))


def _has_nftables() -> bool:
    try:
        return bool(system_program("nft", "nftables"))
    except ClusterError:
        return False


@root_only
@pytest.mark.skipif(not _has_nftables(), reason="make cluster installs nftables, make unit does not")
def test_a_cluster_can_have_the_name_of_a_keyword_of_nftables() -> None:
    script = "from tools.cluster import network; from tools.cluster.layout import Layout\n"
    script += "network.create_masquerading(Layout.of('position'))"
    command = isolated([sys.executable, "-c", script], "position")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _running(argument: str) -> list[int]:
    """Processes of the machine with this argument."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (path / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if arguments[:1] == [b"tail"] and argument.encode() in arguments:
            found.append(int(path.name))
    return found


@pytest.mark.parametrize(("network", "restored"), [("net:[1]", "1"), (None, "0")])
def test_settings_of_another_network_namespace_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: str | None, restored: str
) -> None:
    for name in ("net/ipv4/ip_forward", "kernel/panic"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    monkeypatch.setattr(host_module, "_SYSCTL", tmp_path)
    record = tmp_path / "record.json"
    settings = {"net/ipv4/ip_forward": "0", "kernel/panic": "0"}
    record.write_text(json.dumps({"settings": settings, "folders": [], "network": network}))

    Host.read(record).restore()

    assert (tmp_path / "net/ipv4/ip_forward").read_text() == restored
    assert (tmp_path / "kernel/panic").read_text() == "0"
