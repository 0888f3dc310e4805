# SPDX-License-Identifier: Apache-2.0
"""The transcript of README, run word for word from an empty folder; the stages' containers are fakes.

Figures of the transcript are from a real run. Here every number, name by content and time may differ.
"""

import shlex
from pathlib import Path
from typing import Final

import pytest

from finetune_client.local.session import Session
from finetune_client.program import main
from tests.docsblocks import ROOT, assert_prints, transcript
from tests.unit.client.localprocesses import Machine

README: Final = ROOT / "README.md"


def test_the_transcript_of_the_readme_is_what_its_commands_print(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine(tmp_path, monkeypatch)

    def stop_when_it_serves(session: Session) -> None:
        if session.url("ticket-routing") is not None:
            session.interrupt()

    machine.on_pause = stop_when_it_serves
    steps = list(transcript("README.md", f"run by {Path(__file__).relative_to(ROOT)}"))
    assert [command.split()[1] for command, _ in steps] == ["init", "validate", "run"]
    for command, lines in steps:
        with pytest.raises(SystemExit) as end:
            main(shlex.split(command)[1:])
        assert end.value.code == 0, command
        assert_prints(command, capsys.readouterr().out, lines)


def test_the_readme_is_short() -> None:
    assert len(README.read_text().split()) <= 900
