# SPDX-License-Identifier: Apache-2.0
"""Workers share the event loop with the rest of the process."""

import asyncio
from collections.abc import Callable

import pytest

from finetune_operator.engine.errors import Rejected, Unavailable
from finetune_operator.engine.queue import ReconcileWorkers, WorkQueue
from finetune_operator.plan import Key
from tests.unit.operator import skippingclock
from tests.unit.operator.skippingclock import clock

WORKERS = 8
FAILURES: dict[str, Callable[[], Exception]] = {
    "refused": lambda: Rejected(403, "Forbidden", "cannot patch resource"),
    "unavailable": lambda: Unavailable("no answer"),
    "a bug": lambda: ValueError("a bug"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_the_wait_after_a_failure_grows_with_time_and_not_with_the_number_of_changes(failure: str) -> None:
    key = Key("Dataset", "team", "tickets")

    async def passes(seconds_between_changes: float) -> int:
        """Number of passes in ten minutes that changes did not cause."""
        queue: WorkQueue[Key] = WorkQueue()
        end, changed_at, tries = clock() + 600, set[float](), 0

        async def refuse(_: Key) -> None:
            nonlocal tries
            tries += clock() not in changed_at
            error = FAILURES[failure]()
            raise error

        async def change() -> None:
            queue.add(key)
            while clock() < end:
                await asyncio.sleep(seconds_between_changes)
                changed_at.add(clock())
                queue.add(key)
            queue.close()

        async with asyncio.TaskGroup() as group:
            group.create_task(ReconcileWorkers(queue, refuse, 1, lambda *_: None).run())
            group.create_task(change())
        return tries

    async def compare() -> None:
        quiet, busy = await passes(600), await passes(0.4)
        assert busy >= quiet / 2

    skippingclock.run(compare())


def test_a_right_that_is_given_back_is_used_soon_although_changes_failed_before() -> None:
    async def reconcile_until_it_works() -> None:
        queue: WorkQueue[Key] = WorkQueue()
        done_at = list[float]()

        async def patch(_: Key) -> None:
            if clock() < 30:
                error = FAILURES["refused"]()
                raise error
            done_at.append(clock())
            queue.close()

        async def change() -> None:
            for _ in range(16):
                queue.add(Key("Dataset", "team", "tickets"))
                await asyncio.sleep(6 / 16)

        async with asyncio.TaskGroup() as group:
            group.create_task(ReconcileWorkers(queue, patch, 1, lambda *_: None).run())
            group.create_task(change())
        # Waits of 5, 10 and 20 s end after 35 s at the latest, and another one of 40 s may follow.
        assert done_at[0] <= 5 + 10 + 20 + 40

    for _ in range(20):
        skippingclock.run(reconcile_until_it_works())


async def test_a_conflict_is_retried_at_once_during_the_wait_after_a_refusal() -> None:
    queue: WorkQueue[str] = WorkQueue()
    for _ in range(3):
        queue.retry("a", first_seconds=300, max_seconds=300)
    assert queue.retry("a") <= 60


async def test_the_rest_of_the_process_runs_between_passes_that_never_wait() -> None:
    queue: WorkQueue[Key] = WorkQueue()
    in_a_row = longest = passes = 0

    async def look(_: Key) -> None:
        nonlocal in_a_row, longest, passes
        passes += 1
        in_a_row += 1
        longest = max(longest, in_a_row)

    async def rest_of_the_process() -> None:
        nonlocal in_a_row
        while queue.depth:
            in_a_row = 0
            await asyncio.sleep(0)
        queue.close()

    for number in range(1000):
        queue.add(Key("Checkpoint", "team", f"c{number}"))
    async with asyncio.TaskGroup() as group:
        group.create_task(ReconcileWorkers(queue, look, WORKERS, lambda _key, _seconds, _result: None).run())
        group.create_task(rest_of_the_process())
    assert passes == 1000
    assert longest == 1
