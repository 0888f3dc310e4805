# SPDX-License-Identifier: Apache-2.0
"""Names, paths and ports of a cluster."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tools.cluster import layout
from tools.cluster.commands import ClusterError
from tools.cluster.control_plane_commands import PORTS, ApiEndpoint, api_server, etcd
from tools.cluster.layout import LOOPBACK, Layout, choose_ports, free_port


@pytest.mark.parametrize("name", ["", "Finetune", "1st", "ends-", "a-name-that-is-too-long", "../up", "a b"])
def test_a_name_that_cannot_be_a_bridge_and_a_folder_is_refused(name: str) -> None:
    with pytest.raises(ClusterError, match="--name"):
        Layout.of(name)


def test_the_bridge_of_the_longest_name_fits_the_kernel() -> None:
    assert len(Layout.of("a" * 14).bridge) == 15


def test_a_cache_too_deep_for_a_socket_is_refused_with_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/" + "deep/" * 20)
    with pytest.raises(ClusterError, match="XDG_CACHE_HOME"):
        Layout.of("finetune")


def test_the_state_follows_the_cache_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert Layout.of("finetune").kubeconfig.is_relative_to("/cache")


def test_ports_differ_and_are_recorded(tmp_path: Path) -> None:
    record = tmp_path / "ports.json"
    chosen = choose_ports(PORTS, {"kube-apiserver": 6443}, record)
    assert chosen.keys() == set(PORTS)
    assert len(set(chosen.values())) == len(PORTS)
    assert chosen["kube-apiserver"] == 6443
    assert json.loads(record.read_text()) == chosen


def test_a_port_that_is_taken_is_not_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind((str(LOOPBACK), 0))
        port = taken.getsockname()[1]
        monkeypatch.setattr("tools.cluster.layout._CANDIDATES", range(port, port + 1))
        with pytest.raises(ClusterError, match="no port is free"):
            choose_ports(["etcd"], {}, tmp_path / "ports.json")


def test_a_free_port_is_one_that_nobody_listens_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken, socket.socket() as other:
        taken.bind((str(LOOPBACK), 0))
        other.bind((str(LOOPBACK), 0))
        left = other.getsockname()[1]
        other.close()
        monkeypatch.setattr("tools.cluster.layout._CANDIDATES", (*[taken.getsockname()[1]] * 9, left))
        assert free_port() == left


def test_a_port_that_another_process_has_chosen_is_not_chosen() -> None:
    code = "from tools.cluster.layout import free_port; print(free_port(), flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        chosen, left = int(other.stdout.readline()), free_port()
        assert layout._reserve(chosen) is None
        other.communicate("\n")
    assert left != chosen
    assert layout._reserve(chosen) is not None


def test_two_clusters_share_neither_a_port_nor_a_file(tmp_path: Path) -> None:
    lines = []
    for index, name in enumerate(("one", "two")):
        layout = Layout(name, tmp_path / name)
        chosen = {port: 20000 + 100 * index + offset for offset, port in enumerate(PORTS)}
        endpoint = ApiEndpoint(LOOPBACK, chosen["kube-apiserver"])
        commands = [etcd(layout, chosen), api_server(layout, chosen, endpoint, node=False)]
        lines.append(
            {
                argument
                for command in commands
                for argument in command[1:]
                if str(tmp_path) in argument or ":20" in argument
            }
        )
    assert lines[0]
    assert not lines[0] & lines[1]


def test_without_a_node_the_api_server_listens_on_loopback_only(tmp_path: Path) -> None:
    ports_of = dict.fromkeys(PORTS, 20000)
    command = api_server(Layout("cp", tmp_path), ports_of, ApiEndpoint(LOOPBACK, 20000), node=False)
    assert "--bind-address=127.0.0.1" in command
    assert not [argument for argument in command if "kubelet" in argument]
