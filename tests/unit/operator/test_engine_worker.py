# SPDX-License-Identifier: Apache-2.0
"""Workers share the event loop with the rest of the process."""

import asyncio

from finetune_operator.engine.queue import WorkQueue
from finetune_operator.engine.worker import ReconcileWorkers
from finetune_operator.plan import Key

WORKERS = 8


async def test_passes_that_never_wait_let_the_rest_of_the_process_run() -> None:
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
    assert longest <= WORKERS
