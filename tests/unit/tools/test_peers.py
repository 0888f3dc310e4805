# SPDX-License-Identifier: Apache-2.0
"""The table of peers, and what `make test-peers` prints and writes; no program of a peer is needed."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import distributions
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tools.bench.page import END
from tools.bootstrap.uv import ROOT
from tools.cluster.toolchain import pinned
from tools.images.buildah import ImageError
from tools.peers import __main__ as command
from tools.peers import amx_permission, suites, vllm, vllmimage
from tools.peers.suites import BEGIN, PEERS, PeerSuite
from tools.peers.toolchain import FLUX, OLDER_KUBERNETES
from tools.suites.durations import PAGE
from tools.suites.sessions import LaneResult

REPORT = (
    "<testsuites><testsuite><testcase classname='tests.peers.test_one' name='a'/>"
    "<testcase classname='tests.peers.test_one' name='b'><skipped/></testcase></testsuite></testsuites>"
)


class Sandbox:
    """The command with two peers, `here` and `absent`, whose suites only leave a report."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.page = folder / "testing.md"
        self.page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
        self.installed = {"here"}
        self.ran: list[str] = []
        self.commands: dict[str, list[str]] = {}
        self.failing: set[str] = set()
        monkeypatch.setattr(suites, "PAGE", self.page)
        peers = tuple(map(self._peer, ("here", "absent")))
        for module in (command, suites):
            monkeypatch.setattr(module, "PEERS", peers)
        monkeypatch.setattr(command, "run_concurrently", self._run)

    def __call__(self, *arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(command.app, arguments)
        return done.exit_code, done.output

    def _peer(self, name: str) -> PeerSuite:
        return PeerSuite(
            name, f"{name} 1.0", (f"tests/peers/test_{name}.py",), self._installer(name), self._finder(name)
        )

    def _installer(self, name: str) -> Callable[[], None]:
        return lambda: self.installed.add(name)

    def _finder(self, name: str) -> Callable[[], bool]:
        return lambda: name in self.installed

    def _run(self, commands: dict[str, list[str]]) -> dict[str, LaneResult]:
        ((name, arguments),) = commands.items()
        self.ran.append(name)
        self.commands[name] = arguments
        (report,) = (each for each in arguments if each.startswith("--junit-xml="))
        Path(report.removeprefix("--junit-xml=")).write_text(REPORT)
        return {name: LaneResult(int(name in self.failing), 65.2)}

    def rows(self) -> dict[str, list[str]]:
        """Cells of the table on the page, by the name of the suite."""
        lines = [line.strip("| ").split(" | ") for line in self.page.read_text().splitlines()]
        return {cells[0].partition(":")[0]: cells for cells in lines if ": " in cells[0]}


@pytest.fixture
def peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    return Sandbox(tmp_path, monkeypatch)


def test_all_peers_are_installed_and_their_results_written(peers: Sandbox) -> None:
    code, _ = peers("test")

    assert code == 0
    assert peers.installed == {"here", "absent"}
    text = peers.page.read_text()
    assert text.startswith(f"before\n{BEGIN}\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "cores" in text
    assert "old" not in text
    for name, (title, date, commit, *figures) in peers.rows().items():
        assert title == f"{name}: {name} 1.0"
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", date)
        assert re.match(r"[0-9a-f]{7}", commit)
        assert figures == ["2", "1", "1:05"]
    assert list(peers.rows()) == ["here", "absent"]


def test_a_suite_alone_changes_its_row_only(peers: Sandbox) -> None:
    assert peers("test")[0] == 0
    date_and_commit = re.compile(r"(?<=here 1\.0 \|) [^|]* \| [^|]* \|")
    peers.page.write_text(date_and_commit.sub(" then | there |", peers.page.read_text()))
    peers.ran.clear()

    assert peers("test", "--peer", "absent")[0] == 0

    assert peers.ran == ["absent"]
    assert peers.rows()["here"][1:3] == ["then", "there"]
    assert peers.rows()["absent"][1] != "then"


def test_a_suite_that_never_ran_has_a_row_that_says_so(peers: Sandbox) -> None:
    assert peers("test", "--peer", "here")[0] == 0
    assert peers.rows()["absent"][-1] == "not yet"


def test_only_the_rows_of_suites_that_pass_are_written(peers: Sandbox) -> None:
    peers.failing = {"here"}
    assert peers("test")[0] == 1
    assert peers.rows()["here"][-1] == "not yet"
    assert peers.rows()["absent"][-1] == "1:05"


def test_with_cached_a_peer_that_is_not_installed_is_left_out_by_name(peers: Sandbox) -> None:
    code, output = peers("test", "--cached")

    assert code == 0
    assert peers.ran == ["here"]
    assert peers.installed == {"here"}
    assert "no programs for them: absent" in output
    assert "old" in peers.page.read_text()


@pytest.mark.parametrize("minutes", ["0", "-5"])
def test_no_suite_starts_after_the_time_is_over_and_those_left_out_are_named(
    peers: Sandbox, minutes: str
) -> None:
    code, output = peers("test", "--minutes", minutes)

    assert code == 0
    assert peers.ran == []
    assert "time was over: here, absent" in output
    assert "old" in peers.page.read_text()


@pytest.mark.parametrize("minutes", [20, 75])
def test_ci_gives_the_suites_the_minutes_that_what_ran_before_them_left(tmp_path: Path, minutes: int) -> None:
    """`make verify` and `make test` end `minutes` and twice `minutes` after the start."""
    until, peers_until = map(int, re.findall(r"minutes_until (\d+)", (ROOT / ".ci" / "run").read_text()))
    verified, tested = (1_700_000_000 + ended * 60 for ended in (minutes, 2 * minutes))
    programs = {
        "make": f"""echo "$@" >> {tmp_path}/calls
case $1 in verify) echo {verified} ;; *) echo {tested} ;; esac > {tmp_path}/now""",
        "date": f'test "$*" = +%s; cat {tmp_path}/now',
    }
    (tmp_path / "now").write_text("1700000000")
    for name, script in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh -e\n{script}\n")
        (tmp_path / name).chmod(0o755)

    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run([ROOT / ".ci" / "run"], env=environment, check=True)

    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls == [
        "verify",
        f"test MINUTES={until - minutes}",
        f"test-peers CACHED=1 MINUTES={peers_until - 2 * minutes}",
        "cluster-down",
    ]


def test_a_selection_of_tests_leaves_the_page(peers: Sandbox) -> None:
    assert peers("test", "--", "-k", "rank")[0] == 0
    assert "old" in peers.page.read_text()


def test_chosen_peers_are_installed_and_unknown_ones_refused(peers: Sandbox) -> None:
    assert peers("install", "absent")[0] == 0
    assert peers.installed == {"here", "absent"}
    code, output = peers("install", "other")
    assert code == 2
    assert "no peer other" in output


def test_the_table_names_each_module_of_tests() -> None:
    modules = {f"tests/peers/{path.name}" for path in (ROOT / "tests" / "peers").glob("test_*.py")}
    listed = {path for peer in PEERS for path in peer.tests}
    assert {path for path in listed if path.startswith("tests/peers/")} == modules
    assert all((ROOT / path.partition("::")[0]).is_file() for path in listed)
    assert END in PAGE.read_text().partition(BEGIN)[2]


def test_a_suite_with_a_cluster_runs_in_namespaces_of_its_own(peers: Sandbox) -> None:
    absent = PeerSuite(
        "cluster", "one", ("tests/peers/test_one.py",), lambda: None, lambda: True, is_isolated=True
    )
    command._run(absent, ())
    assert peers.commands["cluster"][0].endswith("unshare")
    peers("test")
    assert "unshare" not in peers.commands["here"][0]


def test_the_controllers_of_flux_have_the_versions_in_the_table() -> None:
    (title,) = (peer.title for peer in PEERS if peer.name == FLUX.name)
    versions = {name: pinned(FLUX.source, f"github.com/fluxcd/{name}") for name in FLUX.programs}
    assert title == f"Flux {FLUX.version}, helm-controller {versions.pop('helm-controller')}"
    assert set(versions.values()) == {FLUX.version}


def test_a_suite_on_an_older_kubernetes_has_the_tests_of_the_newest_with_its_option(peers: Sandbox) -> None:
    for version, tool in OLDER_KUBERNETES.items():
        (suite,) = (peer for peer in PEERS if peer.name == tool.name)
        command._run(replace(suite, install=lambda: None), ())
        assert f"--kubernetes={version}" in peers.commands[tool.name]
        assert tool.version.startswith(f"v{version}.")


class Store:
    """buildah's store with an image of a Python version, in which nothing runs."""

    def __init__(self, version: str = f"{sys.version_info.major}.{sys.version_info.minor}") -> None:
        self.ran: list[str] = []
        self._purelib = f"/opt/venv/lib/python{version}/site-packages"

    def output(self, _: str, *command: str, volume: tuple[Path, str] | None = None) -> str:
        if volume is None:
            return self._purelib
        self.ran.append(command[-1])
        assert volume[1] == self._purelib
        (volume[0] / "module.pyc").touch()
        return ""


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed environment with one module."""
    packages = (
        tmp_path
        / "vllm"
        / "lib"
        / f"python{sys.version_info.major}.{sys.version_info.minor}"
        / "site-packages"
    )
    packages.mkdir(parents=True)
    (packages / "module.py").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(vllm, "environment", lambda: tmp_path / "vllm")
    return packages


def test_packages_of_the_image_are_links_that_are_compiled_once(environment: Path) -> None:
    store = Store()
    for _ in range(2):
        found = vllmimage._packages(store, "localhost/vllm-cpu:0123")  # type: ignore[arg-type]
    assert len(store.ran) == 1
    assert {path.name for path in found.folder.iterdir()} == {"module.py", "module.pyc"}
    assert (found.folder / "module.py").samefile(environment / "module.py")
    assert not (environment / "module.pyc").exists()


def test_an_image_of_another_python_is_refused(environment: Path) -> None:
    with pytest.raises(ImageError, match=r"the image has python3\.9, and vLLM is installed for"):
        vllmimage._packages(Store("3.9"), "localhost/vllm-cpu:0123")  # type: ignore[arg-type]


def test_another_pin_is_another_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert all((ROOT / name).exists() for name in vllm.FILES)
    present = vllm.environment()
    monkeypatch.setattr(vllm, "FILES", vllm.FILES[1:])
    assert vllm.environment() != present


def test_declared_metadata_is_found_by_python(tmp_path: Path) -> None:
    vllm.declare(tmp_path, "vllm", "0.32.0+cpu")
    vllm.declare(tmp_path, "permission", "1", "[vllm.general_plugins]\npermission = json:loads\n")

    found = {each.metadata["Name"]: each for each in distributions(path=[str(tmp_path)])}

    assert found["vllm"].version == "0.32.0+cpu"
    (plugin,) = found["permission"].entry_points
    assert plugin.group == "vllm.general_plugins"
    assert plugin.load() is not None


def test_the_plugin_asks_for_a_permission_only_where_it_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    asked = []
    monkeypatch.setattr(torch.cpu, "_init_amx", lambda: asked.append("tiles"))
    for supported in (False, True):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda found=supported: found)
        amx_permission.register()
    assert asked == ["tiles"]
