# SPDX-License-Identifier: Apache-2.0
"""Time limits of the operator's benchmark."""

import asyncio
import subprocess
import sys
import time
from asyncio import StreamReader, StreamWriter
from pathlib import Path

import pytest

from tools.bench.operator import operator_process
from tools.bench.operator.deadlines import background, patience
from tools.bench.operator.health_probe import HealthProbe
from tools.bench.operator.operator_process import OperatorProcess
from tools.bench.page import BenchError

STALL_SECONDS = 0.3


def test_an_operator_with_more_to_read_may_take_longer() -> None:
    assert patience(10) >= 60
    assert patience(5000) >= 5 * patience(100)


async def started_late(folder: Path) -> None:
    await OperatorProcess.start(folder / "no-such-kubeconfig", "default", folder / "log", patience=0)


def test_an_operator_that_is_not_active_in_time_is_an_error_that_names_its_log(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=f"not active after 0 s; see {tmp_path / 'log'}"):
        asyncio.run(started_late(tmp_path))


async def metric_of_one_that_hangs(folder: Path) -> float:
    async def hang(_reader: StreamReader, writer: StreamWriter) -> None:
        await asyncio.sleep(3)
        writer.close()

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    process = await asyncio.create_subprocess_exec("sleep", "60")
    operator = OperatorProcess(process, server.sockets[0].getsockname()[1], folder / "log")
    try:
        return await operator.metric("finetune_active")
    finally:
        await operator.kill()
        server.close()


def test_an_answer_may_take_a_while_but_not_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert operator_process.ANSWER_SECONDS >= 30
    monkeypatch.setattr(operator_process, "ANSWER_SECONDS", 0.2)
    with pytest.raises(BenchError, match=r"does not answer \(ReadTimeout\)"):
        asyncio.run(metric_of_one_that_hangs(tmp_path))


def test_the_longest_response_time_is_that_of_the_operator() -> None:
    async def respond(reader: StreamReader, writer: StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(STALL_SECONDS)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    async def longest() -> float:
        server = await asyncio.start_server(respond, "127.0.0.1", 0)
        async with server:
            probe = HealthProbe(server.sockets[0].getsockname()[1])
            async with background(probe.run()):
                return await probe.longest()

    assert asyncio.run(longest()) >= STALL_SECONDS


def test_work_of_the_benchmark_holds_up_no_probe() -> None:
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "http.server", "0", "--bind=127.0.0.1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline().split("port ")[1].split()[0])

        def work() -> tuple[float, float]:
            began = time.monotonic()
            time.sleep(1)  # the event loop is blocked
            return began, time.monotonic()

        async def probes_during_work() -> int:
            probe = HealthProbe(port)
            async with background(probe.run()):
                await probe.longest()
                began, ended = work()
                await probe.longest()
            return sum(began <= sent <= ended for sent, _ in probe.responses)

        found = asyncio.run(probes_during_work())
        server.terminate()
    assert found > 0
