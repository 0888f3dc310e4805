# SPDX-License-Identifier: Apache-2.0
"""Completion in a real bash, zsh and fish."""

import os
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from finetune_client.local.persistence import Folder
from finetune_client.program import VERBS
from tests.unit.client.decidedobjects import run_after

SECONDS = 60
BIN = Path(sys.executable).parent
# Types a line and Tab into an interactive zsh, and ends when what it shows matches a pattern.
ZSH = """
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell 'PS1=; autoload -Uz compinit; compinit -u -D; source completion.zsh; print READ""Y'
zpty -r -m shell shown '*READY*'
zpty -n -w shell "$1"$'\t'
zpty -r -m shell shown "$2"
"""


def needs(shell: str) -> pytest.MarkDecorator:
    """Skip a test by name on a machine without `shell`, which `make unit` installs where it may."""
    return pytest.mark.skipif(shutil.which(shell) is None, reason=f"{shell} is not installed")


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", **more}


def script(shell: str) -> str:
    """What `finetune --show-completion` prints in this shell."""
    return subprocess.run(
        [BIN / "finetune"],
        env=environment(_FINETUNE_COMPLETE=f"source_{shell}"),
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def complete(folder: Path, *words: str) -> tuple[set[str], str]:
    """The words that bash offers for the last one of a line, and what it wrote to standard error."""
    # What Tab does in an interactive bash: it calls the function of the command with the words of the line.
    source = (folder / "completion.bash").read_text()
    line = f"COMP_WORDS=({shlex.join(['finetune', *words])}); COMP_CWORD={len(words)}"
    command = f"{source}\n{line}\n_finetune_completion finetune\nprintf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(
        ["bash", "--norc", "-c", command],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
    )
    return set(done.stdout.split()), done.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    runs = Folder(tmp_path / ".finetune")
    for name in ("routing-1", "routing-2", "tone"):
        runs.save(("FineTuneJob", name), run_after("run-ends-promoted", name=name))
    for shell in ("bash", "zsh", "fish"):
        (tmp_path / f"completion.{shell}").write_text(script(shell))
    return tmp_path


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        pytest.param([""], {verb.name for verb in VERBS}, id="verbs"),
        pytest.param(["wa"], {"watch", "wait"}, id="part of a verb"),
        pytest.param(["wait", "--ti"], {"--timeout"}, id="options"),
        pytest.param(["wait", "--for", ""], {"promoted", "ready", "trained"}, id="values"),
        pytest.param(["wait", "--local", ".finetune", "r"], {"routing-1", "routing-2"}, id="a run"),
        pytest.param(["compare", "--local", ".finetune", "tone", "t"], {"tone"}, id="a further run"),
    ],
)
def test_bash_offers_verbs_options_and_local_runs(folder: Path, words: list[str], offered: set[str]) -> None:
    assert complete(folder, *words) == (offered, "")


@needs("zsh")
@pytest.mark.parametrize(
    ("line", "shown"),
    [
        pytest.param("finetune vali", "*finetune validate *", id="a verb"),
        pytest.param("finetune wa", "*wait *-- Wait for a run*watch *-- Show a run*", id="part of a verb"),
        pytest.param("finetune wait --for ", "*promoted*ready*trained*", id="values"),
        pytest.param("finetune wait --local .finetune to", "*.finetune tone *", id="a run"),
    ],
)
def test_zsh_completes_verbs_values_and_local_runs(folder: Path, line: str, shown: str) -> None:
    typed = ["zsh", "-f", "-c", ZSH, "zsh", line, shown]
    subprocess.run(typed, cwd=folder, env=environment(TERM="dumb"), timeout=SECONDS, check=True)


@needs("fish")
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        pytest.param("finetune wa", ["wait", "watch"], id="part of a verb"),
        pytest.param("finetune wait --for ", ["promoted", "ready", "trained"], id="values"),
        pytest.param("finetune wait --local .finetune r", ["routing-1", "routing-2"], id="a run"),
    ],
)
def test_fish_offers_verbs_values_and_local_runs(folder: Path, line: str, offered: list[str]) -> None:
    done = subprocess.run(
        ["fish", "--no-config", "-c", f"source completion.fish; complete --do-complete {shlex.quote(line)}"],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
    )
    # Each line has a word and, after a tab, its description.
    assert [row.partition("\t")[0] for row in done.stdout.splitlines()] == offered
    assert done.stderr == ""


@pytest.mark.parametrize("verb", ["report", "cancel", "download", "chat"])
def test_verbs_that_take_a_run_offer_names(folder: Path, verb: str) -> None:
    assert complete(folder, verb, "--local", ".finetune", "to") == ({"tone"}, "")


def test_a_cluster_that_does_not_answer_delays_a_shell_for_a_short_time_only(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        cluster = {"server": f"http://127.0.0.1:{silent.getsockname()[1]}"}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "silent", "cluster": cluster}],
            "contexts": [{"name": "silent", "context": {"cluster": "silent", "user": "ann"}}],
            "users": [{"name": "ann", "user": {}}],
            "current-context": "silent",
        }
        (folder / "config").write_text(yaml.safe_dump(config))
        assert complete(folder, "wait", "--kubeconfig", "config", "r") == (set(), "")
    assert complete(folder, "wait", "--kubeconfig", "config", "--context", "other", "r") == (set(), "")
