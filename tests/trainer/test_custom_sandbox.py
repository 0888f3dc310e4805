# SPDX-License-Identifier: Apache-2.0
"""A user's metric runs without network, programs and other processes, and within its limits."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.evaluate.custom.stage import MetricError, MetricProcess
from finetune_trainer.evaluate.custom.syscallfilter import CALLS, program
from finetune_trainer.stage.own_metrics import SourceError, check_source

ROW = {"prompt": "late order?", "completion": "shipping"}


def written(folder: Path, source: str) -> Path:
    path = folder / "metric.py"
    path.write_text(source)
    return path


def value_of(source: str, answer: str = "shipping", **limits: Any) -> float:
    with MetricProcess(source, "metric", **limits) as process:
        process.load()
        return process.value(ROW, answer)


def problem_of(source: str, **limits: Any) -> str:
    with pytest.raises(MetricError) as caught:
        value_of(source, **limits)
    return str(caught.value)


def test_a_function_gets_row_and_answer() -> None:
    source = (
        "import numpy as np\n"
        "def metric(row, answer):\n"
        "    print('not a reply')\n"
        "    return np.mean([answer == row['completion'], answer == 'late'])\n"
    )

    assert value_of(source) == 0.5
    assert value_of(source, "sales") == 0


def test_the_trainer_need_not_be_an_installed_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the image. The interpreter of the distribution has no package of the virtual environment."""
    monkeypatch.setattr(sys, "executable", os.path.realpath(sys.executable))

    assert value_of("def metric(row, answer):\n    return answer == row['completion']\n") == 1


def test_a_long_error_is_one_short_line_with_the_line_of_the_source() -> None:
    source = "def metric(row, answer):\n    raise ValueError(row['prompt'] + '\\n' + 'x' * 5000)\n"

    assert problem_of(source) == f"ValueError: late order? {'x' * 176}… (line 2)"


def test_a_function_that_opens_a_socket_fails_with_a_clear_message() -> None:
    source = (
        "import socket\n"
        "def metric(row, answer):\n"
        "    socket.create_connection(('127.0.0.1', 9))\n"
        "    return 1\n"
    )

    problem = problem_of(source)

    assert problem.startswith("PermissionError: socket is refused: a custom metric has no network")
    assert problem.endswith("(line 3)")


@pytest.mark.parametrize(
    "call",
    [
        "socket(2, 1, 0)",
        "socketpair(1, 1, 0, ctypes.create_string_buffer(8))",
        "fork()",
        "syscall(425, 1, 0)",
    ],
)
def test_the_kernel_refuses_native_code_too(call: str) -> None:
    source = (
        "import ctypes\n"
        "def metric(row, answer):\n"
        "    libc = ctypes.CDLL(None, use_errno=True)\n"
        f"    result = libc.{call}\n"
        "    return ctypes.get_errno() if result == -1 else -1\n"
    )

    assert value_of(source) == 1, "EPERM"


@pytest.mark.parametrize(
    "statement",
    [
        "import os; os.fork()",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.execv('/bin/true', ['true'])",
        "open('/tmp/custom-metric-wrote', 'w').('x' * 10)",
    ],
)
def test_a_function_cannot_start_programs_or_write_files(statement: str) -> None:
    source = f"def metric(row, answer):\n    {statement}\n    return 1\n"

    assert "Error" in problem_of(source)


def test_threads_are_possible() -> None:
    source = (
        "import threading\n"
        "def metric(row, answer):\n"
        "    found = []\n"
        "    thread = threading.Thread(target=lambda: found.append(1))\n"
        "    thread.start(); thread.join()\n"
        "    return found[0]\n"
    )

    assert value_of(source) == 1


def test_a_function_sees_neither_environment_nor_memory_of_its_parent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FINETUNE_CONFIG", "with a nonce")
    source = (
        "import os\n"
        "def metric(row, answer):\n"
        "    assert 'FINETUNE_CONFIG' not in os.environ\n"
        "    open(f'/proc/{os.getppid()}/environ').read()\n"
        "    return 1\n"
    )
    if os.geteuid() == 0:
        pytest.skip("root may read every process")

    assert problem_of(source).startswith("PermissionError")


@pytest.mark.parametrize(
    ("body", "limits", "expected"),
    [
        ("    while True: pass", {"row_seconds": 0.5}, "the call took longer than 0.5 s"),
        ("    while True: pass", {"cpu_seconds": 1}, "1 s of CPU time"),
        ("    return len(bytearray(1 << 30))", {"memory_bytes": 1 << 29}, "the memory limit is reached"),
        ("    return 'high'", {}, "metric returned 'high', which is not a finite number"),
        ("    return float('nan')", {}, "metric returned nan"),
        ("    import sys; sys.exit(3)", {}, "SystemExit: 3 (line 2)"),
        ("    import os; os._exit(3)", {}, "its process ended with exit code 3"),
    ],
)
def test_what_goes_wrong_is_said(body: str, limits: dict[str, float], expected: str) -> None:
    assert expected in problem_of((f"def metric(row, answer):\n{body}\n"), **limits)


def test_the_time_of_all_calls_is_limited_also_without_cpu_time() -> None:
    sleeping = "import time\ndef metric(row, answer):\n    time.sleep(60)\n"

    assert problem_of(sleeping, row_seconds=60, all_seconds=1) == (
        "all calls of all metrics together may take 7200 s"
    )


def test_a_reply_and_a_line_without_end_do_not_fill_the_memory(caplog: pytest.LogCaptureFixture) -> None:
    """The function's file descriptors include that of the replies."""
    flooding = (
        "import os\n"
        "def metric(row, answer):\n"
        "    print('x' * 10_000_000, end='')\n"
        "    for number in range(3, 20):\n"
        "        try:\n"
        "            while True:\n"
        "                os.write(number, b'x' * 65536)\n"
        "        except OSError:\n"
        "            pass\n"
    )
    caplog.set_level("INFO")

    assert problem_of(flooding).startswith("its process wrote something else than a value")
    assert len(caplog.text) < 200 * 1000


@pytest.mark.parametrize("reply", ["hello", "7", "{}"])
def test_what_is_no_reply_is_said(reply: str) -> None:
    source = f"import os\ndef metric(row, answer):\n    os.write(3, b'{reply}\\n')\n    return 1\n"

    assert problem_of(source).startswith("its process wrote something else than a value")


def test_an_error_while_loading_is_said() -> None:
    assert problem_of("import nothing_like_this\n").startswith("ModuleNotFoundError")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def other(row, answer): return 1", "it has no function metric"),
        ("def metric(row): return 1", "must take two arguments"),
        ("def metric(row, answer, more): return 1", "must take two arguments"),
        ("async def metric(row, answer): return 1", "is async"),
        ("def metric(", "it is not Python"),
    ],
)
def test_a_source_is_checked_without_executing_it(tmp_path: Path, source: str, expected: str) -> None:
    with pytest.raises(SourceError, match=expected):
        check_source(written(tmp_path, source), "metric")


def test_a_source_is_known_by_its_digest(tmp_path: Path) -> None:
    first = check_source(written(tmp_path, "def metric(row, answer, *, k=1): return 1"), "metric")
    second = check_source(written(tmp_path, "def metric(row, *rest): return 1"), "metric")

    assert first.digest.startswith("sha256:")
    assert first.digest != second.digest


def test_filters_jump_to_instructions_that_exist() -> None:
    """The kernel of this machine checks one of them; all must be well formed."""
    for calls in CALLS.values():
        instructions = program(calls)
        for place, instruction in enumerate(instructions):
            assert place + 1 + max(instruction[2], instruction[3]) < len(instructions) or place + 1 == len(
                instructions
            )
    assert sys.byteorder == "little"
