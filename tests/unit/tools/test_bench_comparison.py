# SPDX-License-Identifier: Apache-2.0
"""Rows of the benchmarks that compare two programs."""

from pathlib import Path
from typing import Any

import pytest
import typer

from tools.bench import comparison
from tools.bench.comparison import Comparison, Workload
from tools.bench.data.__main__ import DATA
from tools.bench.evaluate.__main__ import EVALUATE
from tools.bench.page import END, PAGE
from tools.bench.program import ProgramResult
from tools.bench.train.__main__ import TRAIN

ROWS = Workload("1,000 rows", ("file",), rows=1000, size=2_000_000)


def result(took: float, mebibytes: int, **printed: Any) -> ProgramResult:
    return ProgramResult(printed, took, 2 * took, mebibytes << 20)


def prepared(seconds: float, mebibytes: int = 500, rows: int = 990) -> list[ProgramResult]:
    return [result(seconds, mebibytes, rows=rows)]


def trained(seconds: float, mebibytes: int, **more: Any) -> list[ProgramResult]:
    return [result(seconds, mebibytes, steps=11, tokens=1100, seconds=seconds, **more)]


@pytest.mark.parametrize("row", [DATA, TRAIN, EVALUATE], ids=lambda row: row.name)
def test_each_comparison_has_its_place_and_its_programs(row: Comparison) -> None:
    assert END in PAGE.read_text().partition(row.begin)[2]
    assert all(Path(*module.split(".")).with_suffix(".py").exists() for module in row.programs.values())


def test_a_table_has_one_row_per_program() -> None:
    sheet = DATA.sheet(ROWS, {"ours": prepared(1.0), "peer": prepared(2.0, 4000)})

    assert sheet.title == "1,000 rows, 0.00 GB"
    assert sheet.columns == (
        "",
        "rows/s",
        "MB/s",
        "peak memory, MiB",
        "time, s",
        "processor time, s",
        "rows kept",
    )
    assert sheet.rows == (
        ("ours", "1,000", "2.0", "500", "1.0", "2.0", "990"),
        ("peer", "500", "1.0", "4,000", "2.0", "4.0", "990"),
    )


def test_saves_have_columns_of_the_trainer_only() -> None:
    measured = {"ours": trained(10.0, 100, save_seconds=[0.5, 0.5]), "peer": trained(20.0, 100)}
    ours, peer = TRAIN.sheet(Workload("brand-voice", ()), measured).rows

    assert ours == ("ours", "100", "2.00", "1.00", "100", "0.50", "0.50%")
    assert peer == ("peer", "50", "1.00", "2.00", "100", "", "")


@pytest.mark.parametrize(
    ("ours", "peer", "problems"),
    [
        (prepared(1.0), prepared(2.0), []),
        (
            prepared(3.0),
            prepared(2.0),
            ["1,000 rows: 1.50 times the time of the script; the target is at most 1.00"],
        ),
        (prepared(1.0, 1500), prepared(2.0), ["1,000 rows: 1500 MiB of memory; the target is at most 1024"]),
        (
            prepared(1.0, rows=991),
            prepared(2.0),
            ["1,000 rows: the programs kept different numbers of rows, so their times are not comparable"],
        ),
    ],
)
def test_a_missed_target_is_reported(
    ours: list[ProgramResult], peer: list[ProgramResult], problems: list[str]
) -> None:
    assert DATA.problems(ROWS, {"ours": ours, "peer": peer}) == problems


def test_a_minimum_is_a_target() -> None:
    slow = {"ours": trained(10.0, 100, save_seconds=[9.0]), "peer": trained(11.0, 90)}

    assert TRAIN.problems(Workload("brand-voice", ()), slow) == [
        "brand-voice: 1.10 times the tokens per second of TRL; the target is at least 1.50",
        "brand-voice: 1.11 times the memory of TRL; the target is at most 1.00",
        "brand-voice: 8.3% of the time for saves; the target is at most 5.0%",
    ]


def test_tables_are_written_although_a_target_is_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"{DATA.begin}\n{END}\n")
    monkeypatch.setattr(comparison, "PAGE", page)
    monkeypatch.setattr(
        comparison,
        "alternate",
        lambda _console, _name, _rounds, programs, *_arguments: dict(
            zip(programs, (prepared(3.0), prepared(2.0)), strict=False)
        ),
    )

    with pytest.raises(typer.Exit):
        DATA.run([ROWS], 1, page=True)

    assert "| script with datasets | 500 |" in page.read_text()
    assert "bench-data: 1,000 rows: 1.50 times the time of the script" in capsys.readouterr().err


def test_the_peer_alone_has_no_targets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        comparison,
        "alternate",
        lambda _console, _name, _rounds, programs, *_: {name: prepared(9.0) for name in programs},
    )

    DATA.run([ROWS], 1, page=False, only_peer=True)

    assert "finetune-trainer" not in capsys.readouterr().out
