"""The work queue, under a clock of its own: time passes only when everybody waits."""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from finetune_operator.engine.queue import QueueClosed, WorkQueue


class _Skipping(selectors.SelectSelector):
    """Instead of waiting, moves the clock on by what would have been waited."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout > 0:
            self.now += timeout
        return super().select(0 if timeout is not None else None)


class _SkippingLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._skipping = _Skipping()
        super().__init__(self._skipping)

    def time(self) -> float:
        return self._skipping.now


def at_once(test: Callable[[WorkQueue[str]], Coroutine[Any, Any, None]]) -> None:
    loop = _SkippingLoop()
    try:
        loop.run_until_complete(asyncio.wait_for(test(WorkQueue()), 10_000))
    finally:
        loop.close()


def clock() -> float:
    return asyncio.get_running_loop().time()


def test_a_key_that_waits_already_is_not_queued_twice() -> None:
    async def test(queue: WorkQueue[str]) -> None:
        for key in ("a", "b", "a"):
            queue.add(key)
        assert queue.depth == 2
        assert [await queue.get(), await queue.get()] == ["a", "b"]

    at_once(test)


def test_a_key_in_work_comes_again_only_when_its_worker_is_done() -> None:
    async def test(queue: WorkQueue[str]) -> None:
        queue.add("a")
        assert await queue.get() == "a"
        queue.add("a")
        queue.add("b")
        assert await queue.get() == "b"
        assert queue.depth == 0
        queue.done("a")
        assert await queue.get() == "a"

    at_once(test)


def test_of_two_delays_the_earlier_wins() -> None:
    async def test(queue: WorkQueue[str]) -> None:
        queue.add("a", 30)
        queue.add("a", 5)
        queue.add("a", 60)
        assert await queue.get() == "a"
        assert clock() == pytest.approx(5)
        queue.done("a")
        queue.add("b", 100)
        assert await queue.get() == "b"
        assert clock() == pytest.approx(105)

    at_once(test)


def test_an_immediate_add_overtakes_a_delayed_one() -> None:
    async def test(queue: WorkQueue[str]) -> None:
        queue.add("a", 30)
        queue.add("a")
        assert queue.depth == 1
        assert await queue.get() == "a"
        assert clock() == 0

    at_once(test)


def test_a_delay_asked_for_during_work_counts_from_when_it_was_asked() -> None:
    async def test(queue: WorkQueue[str]) -> None:
        queue.add("a")
        await queue.get()
        queue.add("a", 10)
        await asyncio.sleep(4)
        queue.done("a")
        await queue.get()
        assert clock() == pytest.approx(10)

    at_once(test)


def test_repeated_failures_wait_longer_up_to_the_limit_and_success_forgets_them() -> None:
    async def test(queue: WorkQueue[str]) -> None:
        waits = [queue.retry("a", first=0.1, longest=60) for _ in range(14)]
        for failures, wait in enumerate(waits):
            full = min(60, 0.1 * 2**failures)
            assert full / 2 <= wait <= full
        queue.forget("a")
        assert queue.retry("a", first=0.1) <= 0.1

    at_once(test)


def test_the_server_may_ask_for_a_longer_wait() -> None:
    async def test(queue: WorkQueue[str]) -> None:
        assert queue.retry("a", at_least=7) == 7
        await queue.get()
        assert clock() == pytest.approx(7)

    at_once(test)


def test_closing_wakes_every_waiting_worker_and_hands_out_nothing() -> None:
    async def test(queue: WorkQueue[str]) -> None:
        waiting = [asyncio.create_task(queue.get()) for _ in range(3)]
        await asyncio.sleep(1)
        queue.close()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(result, QueueClosed) for result in results)
        queue.add("a")
        with pytest.raises(QueueClosed):
            await queue.get()
        queue.reopen()
        assert await queue.get() == "a"

    at_once(test)


def test_many_workers_never_hold_the_same_key() -> None:
    async def test(queue: WorkQueue[str]) -> None:
        held: set[str] = set()
        passes = dict.fromkeys("abc", 0)

        async def worker() -> None:
            while True:
                key = await queue.get()
                assert key not in held
                held.add(key)
                await asyncio.sleep(1)
                passes[key] += 1
                held.remove(key)
                queue.done(key)

        workers = [asyncio.create_task(worker()) for _ in range(4)]
        for _ in range(10):
            for key in passes:
                queue.add(key)
            await asyncio.sleep(0.5)
        await asyncio.sleep(10)
        for task in workers:
            task.cancel()
        results = await asyncio.gather(*workers, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results)
        assert all(count >= 4 for count in passes.values())

    at_once(test)
