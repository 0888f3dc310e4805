# SPDX-License-Identifier: Apache-2.0
"""The verbs report, compare and plot."""

import json
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_client.errors import ProgramExit
from finetune_client.program import main
from finetune_client.verbs import options
from tests.mergepatch import merged
from tests.unit.client.decidedobjects import MemoryBackend, golden, run_after

PAGE = "pvc://artifacts/runs/0b5e7a10-0000-4000-8000-000000000001/evaluate/evaluation.html"
MADE = golden(
    "run-on-cpus",
    "Checkpoint/tickets-v1-0b5e7-40-cccccccc",
    {"spec": {"lossCurve": [{"step": 20, "train": 1.5}, {"step": 40, "train": 1.0, "validation": 1.25}]}},
)
VETOED = run_after("run-is-vetoed")


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> MemoryBackend:
    dataset = merged(golden("dataset", "Dataset/tickets"), {"status": {"warnings": ["row 5 has a secret"]}})
    made = MemoryBackend(VETOED, run_after("run-ends-promoted", name="tickets-v2"), MADE, dataset)
    monkeypatch.setattr(options, "connect", lambda **_: made)
    return made


def end(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


def test_a_report_names_the_warnings_of_its_dataset(
    backend: MemoryBackend, capsys: pytest.CaptureFixture[str]
) -> None:
    assert end("report", "tickets-v1") == 0
    printed = capsys.readouterr().out
    assert "memorization, blocks the promotion" in printed
    assert "row 5 has a secret" in printed
    assert "\x1b" not in printed


@pytest.mark.parametrize(("output", "read"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_programs_read_report_comparison_and_curves(
    output: str, read: Any, backend: MemoryBackend, capsys: pytest.CaptureFixture[str]
) -> None:
    assert end("report", "tickets-v1", "-o", output) == 0
    assert read(capsys.readouterr().out)["pages"]["evaluation"] == PAGE
    assert end("compare", "tickets-v1", "tickets-v2", "-o", output) == 0
    assert read(capsys.readouterr().out)["runs"] == ["tickets-v1", "tickets-v2"]
    assert end("plot", "tickets-v1", "-o", output) == 0
    (curve,) = read(capsys.readouterr().out)["curves"]
    assert curve["validation"] == [{"step": 40, "loss": 1.25}]


def test_a_format_for_tables_of_objects_is_refused(
    backend: MemoryBackend, capsys: pytest.CaptureFixture[str]
) -> None:
    assert end("report", "tickets-v1", "-o", "wide") == ProgramExit.INVALID
    assert "write json or yaml" in capsys.readouterr().err


def test_the_evaluation_page_is_opened_if_the_store_can_be_read(
    backend: MemoryBackend, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []

    def browse(uri: str) -> bool:
        opened.append(uri)
        return True

    monkeypatch.setattr(webbrowser, "open", browse)
    backend.files[PAGE] = b"<h1>better</h1>"
    assert end("report", "tickets-v1", "--open") == 0
    (uri,) = opened
    assert Path(uri.removeprefix("file://")).read_bytes() == b"<h1>better</h1>"
    assert uri.endswith("/tickets-v1-evaluation.html")

    backend.files.clear()
    assert end("report", "tickets-v1", "--open") == ProgramExit.FAILED
    assert "only its pods reach" in capsys.readouterr().err
    assert end("report", "tickets-v2", "--open") == ProgramExit.FAILED
    assert "has no page yet" in capsys.readouterr().err


def test_one_run_cannot_be_compared(backend: MemoryBackend, capsys: pytest.CaptureFixture[str]) -> None:
    assert end("compare", "tickets-v1", "tickets-v1") == ProgramExit.INVALID
    assert "name at least two runs" in capsys.readouterr().err


def test_a_run_that_does_not_exist_is_named_with_those_that_do(
    backend: MemoryBackend, capsys: pytest.CaptureFixture[str]
) -> None:
    assert end("report", "nope") == ProgramExit.INVALID
    assert "there are: tickets-v1, tickets-v2" in capsys.readouterr().err


def test_a_plot_goes_to_the_terminal_or_into_a_file(
    backend: MemoryBackend, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert end("plot", "tickets-v1") == 0
    assert "optimizer steps" in capsys.readouterr().out
    file = tmp_path / "loss.svg"
    assert end("plot", "tickets-v1", "tickets-v2", "--svg", str(file)) == 0
    assert "tickets-v2 training" in file.read_text()
    assert end("plot", "tickets-v1", "--svg", str(tmp_path / "no" / "loss.svg")) == ProgramExit.FAILED
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(("output", "read"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_a_document_for_programs_does_not_control_the_terminal(
    output: str, read: Callable[[str], object], capsys: pytest.CaptureFixture[str]
) -> None:
    document = {"message": "\x9b31m für \x1b[2J"}
    options.print_document(document, options.OutputFormat(output))
    printed = capsys.readouterr().out
    assert printed.isascii()
    assert "\x1b" not in printed
    assert read(printed) == document
