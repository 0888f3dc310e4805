# SPDX-License-Identifier: Apache-2.0
"""Waiting in the operator's benchmark: limits, messages, and work that continues meanwhile."""

import asyncio
from pathlib import Path

import pytest

from tools.bench.operator.deadlines import background, until
from tools.bench.operator.request_ledger import RequestLedger
from tools.bench.page import BenchError
from tools.cluster.audit import AuditLog


async def test_the_first_true_value_is_the_answer() -> None:
    values = iter([None, "", "there"])

    async def get() -> str | None:
        return next(values)

    assert await until(get, 60, "it is not there") == "there"


async def test_without_one_in_time_the_failure_is_raised() -> None:
    async def never() -> bool:
        return False

    with pytest.raises(BenchError, match="it is not there"):
        await until(never, 0, "it is not there")


async def test_work_in_the_background_is_cancelled_with_the_block() -> None:
    cancelled = asyncio.Event()
    begun = asyncio.Event()

    async def work() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with background(work()):
        await begun.wait()
    assert cancelled.is_set()


async def test_a_failure_in_the_background_is_raised_at_the_end_of_the_block() -> None:
    failing = asyncio.Event()

    async def work() -> None:
        failing.set()
        raise BenchError("refused")

    async def wait() -> None:
        await asyncio.Event().wait()

    with pytest.raises(BenchError, match="refused"):
        async with background(wait(), work()):
            await failing.wait()


async def test_the_error_of_the_block_wins_over_that_of_the_background() -> None:
    failing = asyncio.Event()

    async def work() -> None:
        failing.set()
        raise BenchError("refused")

    async def block() -> None:
        async with background(work()):
            await failing.wait()
            raise KeyError

    with pytest.raises(KeyError):
        await block()


@pytest.fixture
def unwritten(tmp_path: Path) -> RequestLedger:
    """A ledger of a log in which no client has written."""
    file = tmp_path / "audit.log"
    file.touch()
    return RequestLedger(AuditLog(file))


async def test_silence_is_enough_where_nothing_else_is_expected(unwritten: RequestLedger) -> None:
    await unwritten.until_quiet()


async def test_silence_before_what_is_expected_is_an_error_that_names_it(unwritten: RequestLedger) -> None:
    with pytest.raises(BenchError, match="0 have a Job; expected: 3 runs with a Job"):
        await unwritten.until_quiet(lambda: unwritten.have_first_jobs(3), "3 runs with a Job")
