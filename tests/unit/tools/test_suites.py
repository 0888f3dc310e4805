# SPDX-License-Identifier: Apache-2.0
"""The suites of `make test`: clusters of the sessions, parallel sessions, and the table of times."""

import os
import signal
import subprocess
import sys
from io import StringIO
from itertools import chain
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from tests.waiting import eventually
from tools.bench.page import END
from tools.bootstrap.uv import ROOT
from tools.cluster.processes import start_time
from tools.suites.__main__ import app
from tools.suites.durations import BEGIN, PAGE, Result, print_results, sheet, slowest
from tools.suites.sessions import (
    E2E_LAST,
    E2E_SECOND,
    SEPARATE_SESSIONS,
    Suite,
    TestSession,
    run_concurrently,
    suites,
)


def e2e(folder: Path) -> Suite:
    (found,) = (suite for suite in suites(folder) if suite.name == "e2e")
    return found


def test_what_the_plan_names_is_there() -> None:
    apart = chain.from_iterable(SEPARATE_SESSIONS.values())
    for path in (*apart, E2E_LAST, *(f"tests/e2e/{name}" for name in E2E_SECOND)):
        assert (ROOT / path).exists(), path


def test_every_end_to_end_module_is_in_one_lane_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBE_CONTEXT", raising=False)
    modules = sorted((ROOT / "tests" / "e2e").glob("test_*.py"))
    ran = []
    for session in (session for step in e2e(tmp_path).steps for session in step):
        ignored = {each.removeprefix("--ignore=") for each in session.arguments}
        ran += [
            module
            for module in (str(path.relative_to(ROOT)) for path in modules)
            if module in session.arguments or ("tests/e2e" in session.arguments and module not in ignored)
        ]
    assert sorted(ran) == [str(path.relative_to(ROOT)) for path in modules]


def test_on_another_cluster_the_end_to_end_tests_run_in_one_lane_without_namespaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBE_CONTEXT", "kind-kind")
    ((session,),) = e2e(tmp_path).steps
    assert not session.isolated
    assert session.arguments == ("tests/e2e",)


def test_three_commands_run_at_once_and_the_next_when_one_has_ended(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    names = ("one", "two", "three")
    last = tmp_path / "last"
    waits = " && ".join(f"until [ -e {tmp_path / name} ]; do :; done" for name in names)
    commands = {
        name: ["timeout", "20", "sh", "-c", f"[ ! -e {last} ] && touch {tmp_path / name} && {waits}; echo $?"]
        for name in names
    }

    ended = run_concurrently({**commands, "last": ["sh", "-c", f"touch {last}; exit 3"]})

    assert {name: each.status for name, each in ended.items()} == {**dict.fromkeys(names, 0), "last": 3}
    assert sorted(capfd.readouterr().out.splitlines()) == ["one  0", "three  0", "two  0"]


def test_commands_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    command = ["sh", "-c", f"echo $$ >{file}.part; mv {file}.part {file}; exec sleep 600"]
    script = f"from tools.suites.sessions import run_concurrently; run_concurrently({{'one': {command!r}}})"
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT) as parent:
        eventually("it has started", file.exists)
        parent.send_signal(signal.SIGKILL)
    pid = int(file.read_text())
    eventually("it has ended", lambda: start_time(pid) is None)


def test_after_an_interrupt_commands_that_run_are_waited_for_and_no_other_begins(tmp_path: Path) -> None:
    begun = [tmp_path / f"begun-{number}" for number in range(3)]
    cleaned, next_one = tmp_path / "cleaned", tmp_path / "next"
    patient = f"trap 'sleep 0.5; touch {cleaned}; exit 2' INT; touch {begun[0]}; while :; do sleep 0.1; done"
    commands = {
        "one": ["sh", "-c", patient],
        "two": ["sh", "-c", f"touch {begun[1]}; exec sleep 600"],
        "three": ["sh", "-c", f"touch {begun[2]}; exec sleep 600"],
        "four": ["touch", str(next_one)],
    }
    script = f"from tools.suites.sessions import run_concurrently; run_concurrently({commands!r})"
    # Background commands of a shell ignore the signal, and these tests may be one.
    command = ["env", "--default-signal=INT", sys.executable, "-c", script]
    with subprocess.Popen(command, cwd=ROOT, process_group=0) as parent:
        eventually("all three have started", lambda: all(path.exists() for path in begun))
        os.killpg(parent.pid, signal.SIGINT)

    assert cleaned.exists()
    assert not next_one.exists()


def test_the_table_counts_the_tests_by_folder_and_those_that_were_skipped(tmp_path: Path) -> None:
    cases = (
        '<testcase classname="tests.trainer.data.test_rows" name="a" time="61.2"/>',
        '<testcase classname="tests.trainer.test_train" name="b" time="2.5"><skipped/></testcase>',
        '<testcase classname="tests.integration.test_rights" name="c"><failure/></testcase>',
    )
    reports = [tmp_path / f"{number}.xml" for number in range(2)]
    reports[0].write_text(f"<testsuites><testsuite>{cases[0]}</testsuite></testsuites>")
    interrupted = '<testcase time="0.1"/>'
    reports[1].write_text(
        f"<testsuites><testsuite>{cases[1]}{cases[2]}{interrupted}</testsuite></testsuites>"
    )
    result = Result("both", seconds=125.4, sessions={"a": 59.6, "b": 125.0})

    result.count(reports)

    table = sheet([result, Result("other", seconds=60)])
    assert table.rows == (
        ("both", "2 + 1", "1", "a 1:00, b 2:05", "2:05"),
        ("other", "", "0", "", "1:00"),
        ("all", "3", "1", "", "3:05"),
    )
    assert slowest([result]).rows == (
        ("tests.trainer.data.test_rows", "both", "1:01"),
        ("tests.trainer.test_train", "both", "0:02"),
        ("tests.integration.test_rights", "both", "0:00"),
    )


def test_the_tests_that_failed_are_named_below_the_table(tmp_path: Path) -> None:
    folder = tmp_path / "tests" / "unit"
    folder.mkdir(parents=True)
    (folder / "test_some.py").write_text(
        "import pytest\n\n\n@pytest.fixture\ndef broken(): raise OSError('no disk')\n\n\n"
        "def test_passes(): pass\n\n\ndef test_fails(): raise ValueError('[1]\\nmore')\n\n\n"
        "def test_never_begins(broken): pass\n"
    )
    (folder / "test_unreadable.py").write_text("import absent_package\n")
    report = tmp_path / "report.xml"
    pytest_run = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    subprocess.run(
        [*pytest_run, f"--rootdir={tmp_path}", "--import-mode=importlib", f"--junit-xml={report}", tmp_path],
        cwd=tmp_path,
        check=False,
        stdout=subprocess.DEVNULL,
    )
    result = Result("unit")
    result.count([report])
    assert [result.end(str(status), status) for status in (0, 5, 1, -9)] == [True, True, False, False]
    text = StringIO()

    print_results(Console(file=text, width=60), (), [result])

    assert result.tests == {"unit": 3}
    assert text.getvalue().splitlines()[-4:] == [
        "FAILED tests.unit.test_unreadable: collection failure",
        "FAILED tests.unit.test_some::test_fails: ValueError: [1]",
        'FAILED tests.unit.test_some::test_never_begins: failed on setup with "OSError: no disk"',
        "FAILED -9: pytest ended with status -9",
    ]


def test_a_suite_that_fails_does_not_keep_the_next_ones_from_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, body in (("first", "raise OSError('full')"), ("second", "pass")):
        folder = tmp_path / "tests" / name
        folder.mkdir(parents=True)
        (folder / f"test_{name}.py").write_text(f"def test_it(): {body}\n")
    (tmp_path / "pytest.ini").touch()
    plan = [
        Suite(name, name, ((TestSession(name, (str(tmp_path / "tests" / name), f"--rootdir={tmp_path}")),),))
        for name in ("first", "second")
    ]
    monkeypatch.setattr("tools.suites.__main__.suites", lambda _records: plan)

    ended = CliRunner().invoke(app)

    assert ended.exit_code == 1
    rows = [line.split("│")[1:3] for line in ended.output.splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in row] for row in rows][2:] == [
        ["first", "1"],
        ["second", "1"],
        ["all", "2"],
    ]
    assert "FAILED tests.first.test_first::test_it: OSError: full" in ended.output


def test_after_the_time_for_all_suites_no_test_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tests" / "one").mkdir(parents=True)
    module = tmp_path / "tests" / "one" / "test_one.py"
    module.write_text("import time\n\ndef test_long(): time.sleep(1.5)\n\ndef test_next(): pass\n")
    (tmp_path / "pytest.ini").touch()
    session = TestSession("one", (str(module), f"--rootdir={tmp_path}"))
    monkeypatch.setattr("tools.suites.__main__.suites", lambda _records: [Suite("one", "one", ((session,),))])

    ended = CliRunner().invoke(app, ["--minutes=0"])

    assert ended.exit_code == 1
    assert "│ one   │     1 │" in ended.output
    assert "FAILED one: the time for all suites was over before its last test" in ended.output


def test_a_suite_whose_targets_cannot_be_made_fails_and_runs_no_test(monkeypatch: pytest.MonkeyPatch) -> None:
    session = TestSession("one", ("tests/unit/tools/test_suites.py",))
    plan = [Suite("one", "one", ((session,),), targets=("no-such-target",))]
    monkeypatch.setattr("tools.suites.__main__.suites", lambda _records: plan)

    ended = CliRunner().invoke(app)

    assert ended.exit_code == 1
    assert "FAILED one: make no-such-target failed" in ended.output
    assert "│ all   │     0 │" in ended.output


def test_the_page_has_the_markers_of_the_table() -> None:
    assert END in PAGE.read_text().partition(BEGIN)[2]
