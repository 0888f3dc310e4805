# SPDX-License-Identifier: Apache-2.0
"""The transcript of README, run word for word from an empty folder; the stages' containers are fakes.

Figures of the transcript are from a real run. Here every number, name by content and time may differ.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from finetune_client.local.session import Session
from finetune_client.program import main
from tests.docsblocks import ROOT, blocks
from tests.unit.client.localprocesses import Machine

README: Final = ROOT / "README.md"
VARYING: Final = re.compile(r"\d+:\d\d|\d+ s\b|(?<=-)[0-9a-f]{4,}\b|\d+(?:\.\d+)?")


def transcript() -> Iterator[tuple[str, list[str]]]:
    """Each command of README with the lines that it prints."""
    (text,) = (
        block.text
        for block in blocks()
        if block.page == README and block.marker == f"run by {Path(__file__).relative_to(ROOT)}"
    )
    for step in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, *lines = step.splitlines()
        yield command, [line for line in lines if line.strip() != "…"]


def without_figures(line: str) -> str:
    return VARYING.sub("#", line.strip())


def test_the_transcript_of_the_readme_is_what_its_commands_print(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine(tmp_path, monkeypatch)

    def stop_when_it_serves(session: Session) -> None:
        if session.url("ticket-routing") is not None:
            session.interrupt()

    machine.on_pause = stop_when_it_serves
    steps = list(transcript())
    assert [command.split()[1] for command, _ in steps] == ["init", "validate", "run"]
    for command, lines in steps:
        with pytest.raises(SystemExit) as end:
            main(shlex.split(command)[1:])
        assert end.value.code == 0, command
        printed = iter([without_figures(line) for line in capsys.readouterr().out.splitlines()])
        for line in lines:
            assert without_figures(line) in printed, f"{command} does not print, or not in this order: {line}"


def test_the_readme_is_short() -> None:
    assert len(README.read_text().split()) <= 900
