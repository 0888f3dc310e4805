# SPDX-License-Identifier: Apache-2.0
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tools.bench import page as page_module
from tools.bench.operator import __main__ as command
from tools.bench.operator.compared_workloads import Floor, Peer
from tools.bench.operator.measurement import Measured, ProcessCost, SizeComparison
from tools.bench.operator.request_ledger import Requests, Spread
from tools.bench.operator.tables import BEGIN, write
from tools.bench.page import END, PAGE, BenchError
from tools.bench.program import ProcessUsage


def floor(jobs: int) -> Floor:
    requests = Requests(Counter({("job-controller", "create"): 2 * jobs, ("user", "create"): jobs}))
    return Floor(Spread(p50=0.0, p99=0.0, last=1.6), requests)


def measured(runs: int) -> Measured:
    requests = Requests(Counter({("operator", "create"): 10 * runs, ("user", "create"): runs}))
    usage = ProcessUsage(9.0, 8.0, 1.0, 20.5)
    cost = ProcessCost(requests, writes=15 * runs, usage=usage, peak_bytes=120 << 20)
    spread = Spread(p50=1.25, p99=3.5, last=4.0)
    return Measured(runs, spread, requests, usage, spread, cost, cost, restart_seconds=2.0)


def compared(runs: int) -> SizeComparison:
    requests = Requests(Counter({("trainer", "create"): 12 * runs, ("user", "create"): runs}))
    peer = Peer(Spread(p50=6.0, p99=7.0, last=8.0), requests, 5.5, (60 << 20, 90 << 20))
    return SizeComparison(runs, floor(runs), peer, measured(runs))


def test_what_was_measured_takes_the_place_of_what_stood_between_the_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")

    write(page, [compared(100), compared(1000)])

    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}\n")
    assert text.endswith(f"\n{END}\nafter\n")
    assert "old" not in text
    assert "|  | 100 | 1,000 | target |" in text
    assert "| FineTuneJobs relative to TrainJobs | 0.50 | 0.50 |" in text
    assert "| requests of all clients per TrainJob | 12.00 | 12.00 |" in text
    assert "| operator writes per run until it is done | 15.00 | 15.00 | ≤ 20 |" in text
    assert "| other programs: processor time, s | 2.5 | 2.5 |  |" in text
    assert "| operator | 10.00 | 10.00 |" in text


def test_the_requests_of_the_measurement_itself_are_not_counted_as_the_runs(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"{BEGIN}\n{END}\n")

    write(page, [compared(100)])

    assert "| requests of all clients per run until it is done | 10.00 |  |" in page.read_text()


def test_a_page_without_markers_is_not_touched(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("by hand")

    with pytest.raises(BenchError, match="put them back"):
        write(page, [compared(100)])

    assert page.read_text() == "by hand"


def test_the_page_in_the_documentation_has_the_markers() -> None:
    assert BEGIN in PAGE.read_text()
    assert END in PAGE.read_text().partition(BEGIN)[2]


def test_an_error_at_a_later_size_leaves_the_tables_of_those_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"{BEGIN}\n{END}\n")

    def compare(runs: int, _logs: Path, tell: Callable[[str], None]) -> SizeComparison:
        tell("some have a Job")
        if runs == 5000:
            raise BenchError("nothing moves any more")
        return compared(runs)

    monkeypatch.setattr(command, "PAGE", page)
    monkeypatch.setattr(command, "compare", compare)
    done = CliRunner().invoke(command.app, ["100", "1000", "5000", f"--logs={tmp_path}"])

    assert done.exit_code == 1
    assert "bench: nothing moves any more" in done.stderr
    assert "|  | 100 | 1,000 | target |" in page.read_text()


def test_the_page_is_no_change_to_what_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, code = tmp_path / "docs" / "page.md", tmp_path / "code.py"
    page.parent.mkdir()
    page.write_text(f"{BEGIN}\n{END}\n")
    code.touch()
    monkeypatch.setattr(page_module, "ROOT", tmp_path)
    monkeypatch.setattr(page_module, "PAGE", page)
    for arguments in (
        ("init", "--quiet"),
        ("add", "."),
        ("-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--message=a"),
    ):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)

    for runs in (100, 1000):
        write(page, [compared(runs)])
        assert ", changed;" not in page.read_text()

    code.write_text("other")
    write(page, [compared(100)])
    assert ", changed;" in page.read_text()
