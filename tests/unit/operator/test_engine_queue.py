# SPDX-License-Identifier: Apache-2.0
"""The work queue with a fake clock, which advances only when all tasks wait."""

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from finetune_operator.engine.queue import PARKED_BATCH_SIZE, QueueClosed, WorkQueue
from tests.unit.operator.skippingclock import clock, run


def at_once(test: Callable[[WorkQueue[str]], Coroutine[Any, Any, None]]) -> None:
    run(test(WorkQueue()))


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
        for failures in range(14):
            full = min(60, 0.1 * 2**failures)
            assert full / 2 <= queue.retry("a", first_seconds=0.1, max_seconds=60) <= full
            queue.done(await queue.get())
        queue.forget("a")
        assert queue.retry("a", first_seconds=0.1) <= 0.1

    at_once(test)


def test_the_server_may_ask_for_a_longer_wait() -> None:
    async def test(queue: WorkQueue[str]) -> None:
        assert queue.retry("a", min_seconds=7) == 7
        await queue.get()
        assert clock() == pytest.approx(7)

    at_once(test)


def test_a_key_that_may_not_start_yet_holds_up_no_other_and_keeps_its_place() -> None:
    async def test() -> None:
        allowed = {"live"}
        queue: WorkQueue[str] = WorkQueue(may_start=allowed.__contains__)
        queue.add_idle("at rest")
        for key in ("first", "second", "live"):
            queue.add(key)
        assert await queue.get() == "live"
        queue.add("first")
        waiting = asyncio.create_task(queue.get())
        await asyncio.sleep(60)
        assert not waiting.done()
        assert queue.depth == 3
        allowed |= {"first", "second", "at rest"}
        queue.start_postponed()
        assert [await waiting, await queue.get(), await queue.get()] == ["first", "second", "at rest"]

    run(test())


def test_closing_wakes_every_waiting_worker_and_hands_out_nothing() -> None:
    async def test(queue: WorkQueue[str]) -> None:
        waiting = [asyncio.create_task(queue.get()) for _ in range(3)]
        await asyncio.sleep(1)
        queue.close()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(result, QueueClosed) for result in results)
        with pytest.raises(QueueClosed):
            await queue.get()
        queue.reopen()
        queue.add("a")
        assert await queue.get() == "a"

    at_once(test)


def test_a_closed_queue_holds_nothing_however_much_is_added() -> None:
    async def test(queue: WorkQueue[str]) -> None:
        queue.add("worked on")
        assert await queue.get() == "worked on"
        for key, delay in (("ready", 0), ("later", 60), ("worked on", 0)):
            queue.add(key, delay)
        queue.add_idle("idle")
        queue.close()
        queue.done("worked on")
        for key, delay in (("ready", 0), ("later", 60), ("worked on", 0)):
            queue.add(key, delay)
        queue.add_idle("idle")
        assert queue.retry("failed") > 0
        queue.reopen()
        await asyncio.sleep(120)
        assert queue.depth == 0

    at_once(test)


def by_first_letter(key: str) -> str:
    return key[0]


def by_lock(key: str) -> str | None:
    """The text after a colon."""
    return key.partition(":")[2] or None


def test_shares_are_served_in_rotation_however_many_keys_one_of_them_has() -> None:
    async def test() -> None:
        queue: WorkQueue[str] = WorkQueue(by_first_letter)
        for number in range(2000):
            queue.add(f"a{number}")
        queue.add("b0")
        queue.add("b1")
        queue.add("c0")
        assert [await queue.get() for _ in range(7)] == ["a0", "b0", "c0", "a1", "b1", "a2", "a3"]
        # A later key waits for one pass of the other share.
        queue.add("b2")
        assert [await queue.get() for _ in range(3)] == ["a4", "b2", "a5"]

    run(test())


def test_a_key_that_waits_for_its_turn_is_given_to_no_worker() -> None:
    async def test() -> None:
        queue: WorkQueue[str] = WorkQueue(lock=by_lock)
        for key in ("1:line", "2:line", "3:line", "4"):
            queue.add(key)
        assert [await queue.get(), await queue.get()] == ["1:line", "4"]
        waiting = asyncio.create_task(queue.get())
        await asyncio.sleep(1)
        assert not waiting.done()
        assert queue.depth == 2
        queue.done("4")
        await asyncio.sleep(1)
        assert not waiting.done()
        queue.done("1:line")
        assert await waiting == "2:line"
        queue.done("2:line")
        assert await queue.get() == "3:line"

    run(test())


def test_a_turn_comes_before_the_other_keys_of_its_share_and_in_order() -> None:
    async def test() -> None:
        queue: WorkQueue[str] = WorkQueue(lock=by_lock)
        for key in ("1:line", "2:line", "3:line"):
            queue.add(key)
        assert await queue.get() == "1:line"
        queue.add("4")
        assert await queue.get() == "4"
        for key in ("5", "6:line"):
            queue.add(key)
        queue.done("1:line")
        assert await queue.get() == "2:line"
        queue.done("2:line")
        assert await queue.get() == "3:line"
        assert await queue.get() == "5"
        queue.done("3:line")
        assert await queue.get() == "6:line"

    run(test())


def test_a_key_that_no_longer_needs_its_turn_passes_it_on() -> None:
    async def test() -> None:
        needed = {"1": "line", "2": "line", "3": "line"}
        queue: WorkQueue[str] = WorkQueue(lock=needed.get)
        for key in needed:
            queue.add(key)
        assert await queue.get() == "1"
        waiting = asyncio.create_task(queue.get())
        await asyncio.sleep(1)
        del needed["2"]
        queue.done("1")
        assert {await waiting, await queue.get()} == {"2", "3"}

    run(test())


def test_a_key_that_waits_for_its_turn_is_not_queued_twice() -> None:
    async def test() -> None:
        queue: WorkQueue[str] = WorkQueue(lock=by_lock)
        queue.add("1:line")
        queue.add("2:line")
        assert await queue.get() == "1:line"
        waiting = asyncio.create_task(queue.get())
        await asyncio.sleep(1)
        queue.add("2:line")
        queue.add("2:line", 30)
        queue.add_idle("2:line")
        queue.done("1:line")
        assert await waiting == "2:line"
        queue.done("2:line")
        await asyncio.sleep(60)
        assert queue.depth == 0

    run(test())


def test_idle_keys_wait_until_nothing_else_is_ready() -> None:
    async def test(queue: WorkQueue[str]) -> None:
        queue.add_idle("idle")
        queue.add_idle("also idle")
        queue.add("a")
        queue.add("b")
        queue.add_idle("b")
        assert queue.depth == 4
        assert [await queue.get() for _ in range(2)] == ["a", "b"]
        # A change makes an idle key an ordinary one.
        queue.add("also idle")
        assert [await queue.get() for _ in range(2)] == ["also idle", "idle"]

    at_once(test)


def test_a_look_without_need_replaces_the_one_that_was_to_come_later() -> None:
    async def test(queue: WorkQueue[str]) -> None:
        queue.add("a", 60)
        queue.add_idle("a")
        assert await queue.get() == "a"
        queue.done("a")
        await asyncio.sleep(120)
        assert queue.depth == 0

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


def test_what_happened_to_a_key_puts_it_before_idle_ones_that_wait_for_the_same_turn() -> None:
    async def test() -> None:
        queue: WorkQueue[str] = WorkQueue(lock=by_lock)
        queue.add("0:line")
        assert await queue.get() == "0:line"
        for number in range(1, 6):
            queue.add_idle(f"{number}:line")
        waiting = asyncio.create_task(queue.get())
        await asyncio.sleep(1)
        queue.add("4:line")
        queue.add("9:line")
        await asyncio.sleep(1)
        order = []
        queue.done("0:line")
        order.append(await waiting)
        for _ in range(5):
            queue.done(order[-1])
            order.append(await queue.get())
        assert order == ["4:line", "9:line", "1:line", "2:line", "3:line", "5:line"]

    run(test())


def test_finding_thousands_of_keys_whose_turn_is_taken_lets_the_rest_of_the_process_run() -> None:
    async def test() -> None:
        asked = longest = 0

        def lock(_: str) -> str:
            nonlocal asked, longest
            asked += 1
            longest = max(longest, asked)
            return "line"

        async def rest_of_the_process() -> None:
            nonlocal asked
            while True:
                asked = 0
                await asyncio.sleep(0)

        queue: WorkQueue[str] = WorkQueue(lock=lock)
        for number in range(20 * PARKED_BATCH_SIZE):
            queue.add(str(number))
        assert await queue.get() == "0"
        rest = asyncio.create_task(rest_of_the_process())
        waiting = asyncio.create_task(queue.get())
        for _ in range(100):
            await asyncio.sleep(0)
        assert queue.depth == 20 * PARKED_BATCH_SIZE - 1
        assert longest <= 2 * PARKED_BATCH_SIZE
        queue.done("0")
        assert await waiting == "1"
        rest.cancel()

    run(test())


def test_closing_during_the_search_for_a_key_hands_out_nothing() -> None:
    async def test() -> None:
        queue: WorkQueue[str] = WorkQueue(lock=lambda _: "line")
        for number in range(3 * PARKED_BATCH_SIZE):
            queue.add(str(number))
        assert await queue.get() == "0"
        waiting = asyncio.create_task(queue.get())
        await asyncio.sleep(0)
        queue.close()
        with pytest.raises(QueueClosed):
            await waiting

    run(test())


def test_random_work_never_loses_a_key_nor_lets_two_of_one_turn_overlap() -> None:
    async def test() -> None:
        chance = random.Random(11)  # noqa: S311 - repeatable
        locks: dict[str, str | None] = {}
        queue: WorkQueue[str] = WorkQueue(by_first_letter, locks.get)
        held: list[str] = []
        owed: set[str] = set()

        async def worker() -> None:
            while True:
                key = await queue.get()
                lock = locks.get(key)
                assert key not in held
                assert lock is None or lock not in [locks_when_taken[each] for each in held]
                locks_when_taken[key] = lock
                held.append(key)
                owed.discard(key)
                await asyncio.sleep(chance.random())
                held.remove(key)
                queue.done(key)

        locks_when_taken: dict[str, str | None] = {}
        workers = [asyncio.create_task(worker()) for _ in range(4)]
        for _ in range(1000):
            key = f"{chance.choice('ab')}{chance.randrange(12)}"
            if chance.random() < 0.1:
                locks[key] = chance.choice([None, "x", "y"])
            if chance.random() < 0.5:
                queue.add_idle(key)
                # A key with a worker is already being reconciled.
                owed |= {key} - set(held)
            else:
                queue.add(key, chance.choice([0, 0, 0.5]))
                owed.add(key)
            await asyncio.sleep(chance.random() * 0.3)
        await asyncio.sleep(100)
        assert not [task for task in workers if task.done()]
        assert owed == set()
        assert queue.depth == 0
        for task in workers:
            task.cancel()

    run(test())
