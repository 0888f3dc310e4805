# SPDX-License-Identifier: Apache-2.0
"""The table of verbs, and what the program does with it."""

import subprocess
import sys

import pytest

from finetune_client import program
from finetune_client.errors import OperationError, ProgramExit
from finetune_client.program import VERBS, Verb, main
from finetune_client.verbs.options import repeating

HEAVY = ("finetune_operator", "finetune_trainer", "kubernetes", "openai", "pydantic", "yaml")


def test_the_help_names_every_verb_with_its_purpose(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert end.value.code == 0
    assert [verb.name for verb in VERBS if f"{verb.name} {verb.help[:20]}" not in printed] == []


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_every_verb_has_a_help_of_its_own(verb: Verb, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([verb.name, "--help"])
    assert end.value.code == 0
    assert verb.help[:20] in capsys.readouterr().out


def test_the_help_imports_no_verb() -> None:
    code = (
        "import sys; from finetune_client.program import main\n"
        "try: main(['--help'])\n"
        f"finally: print([name for name in {HEAVY} if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"


def test_an_unknown_verb_names_the_nearest_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["chek"])
    assert end.value.code == ProgramExit.INVALID
    assert "'check'" in capsys.readouterr().err


def test_a_failure_ends_with_its_message_its_remedy_and_its_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(arguments: object) -> None:
        raise OperationError(f"no run {arguments}", ["finetune ls"], exit_code=ProgramExit.GATES_FAILED)

    monkeypatch.setattr(program, "app", fail)
    with pytest.raises(SystemExit) as end:
        main(["watch"])
    assert end.value.code == ProgramExit.GATES_FAILED
    assert capsys.readouterr().err.splitlines() == ["finetune: no run ['watch']", "  finetune ls"]


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("finetune logs a", "finetune logs a --namespace team --context 'my cluster'"),
        ("finetune ls: the runs", "finetune ls --namespace team --context 'my cluster': the runs"),
        ("finetune approve a -n other", "finetune approve a -n other"),
        ("finetune validate FILE: whether", "finetune validate FILE: whether"),
        ("kubectl get pods", "kubectl get pods"),
    ],
)
def test_the_commands_of_a_failure_find_the_same_objects(command: str, expected: str) -> None:
    selected = {"namespace": "team", "context": "my cluster", "kubeconfig": None, "local": None}
    with pytest.raises(OperationError) as failed, repeating(selected):
        raise OperationError("failed", [command])
    assert failed.value.commands == (expected,)
