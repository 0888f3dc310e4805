# SPDX-License-Identifier: Apache-2.0
"""Which objects are reconciled without a change, and when."""

import asyncio

from finetune_operator.engine.queue import WorkQueue
from finetune_operator.plan import Key, Manifest
from finetune_operator.reconcile.inputs.indexes import key_of
from finetune_operator.runtime.triggers import Resync, is_at_rest
from tests.unit.operator.skippingclock import clock, run

PERIOD = 600.0


def run_of(name: str, **conditions: str) -> Manifest:
    return {
        "kind": "FineTuneJob",
        "metadata": {"name": name, "namespace": "team", "generation": 1},
        "status": {
            "observedGeneration": 1,
            "conditions": [{"type": type_, "status": status} for type_, status in conditions.items()],
        },
    }


async def looking(queue: WorkQueue[Key], objects: list[Manifest]) -> None:
    by_key = {key_of(obj): obj for obj in objects}
    await Resync(queue, lambda: by_key, lambda key: is_at_rest(by_key[key]), PERIOD).run()


def test_a_term_begins_with_what_is_under_way_and_comes_to_the_rest_afterwards() -> None:
    ended = [run_of(f"ended-{number}", Ready="True") for number in range(3)]
    objects = [*ended, run_of("running", Reconciling="True"), run_of("new")]

    async def test() -> None:
        queue: WorkQueue[Key] = WorkQueue()
        resync = asyncio.create_task(looking(queue, objects))
        order = [(await queue.get()).name for _ in objects]
        assert order == ["running", "new", "ended-0", "ended-1", "ended-2"]
        assert clock() == 0
        resync.cancel()

    run(test())


def test_an_ended_run_and_its_checkpoints_follow_one_another() -> None:
    runs = [run_of(f"run-{number}", Ready="True") for number in range(3)]
    checkpoints = [
        {**run_of(f"run-{number}-0b5e7-{step}-cccccccc", Promoted="True"), "kind": "Checkpoint"}
        for step in (20, 40)
        for number in range(3)
    ]

    async def test() -> None:
        queue: WorkQueue[Key] = WorkQueue()
        resync = asyncio.create_task(looking(queue, [*runs, *checkpoints]))
        order = [(await queue.get()).name[:5] for _ in range(9)]
        assert order == ["run-0"] * 3 + ["run-1"] * 3 + ["run-2"] * 3
        resync.cancel()

    run(test())


def test_each_object_is_looked_at_once_a_period_and_not_all_at_once() -> None:
    objects = [run_of(f"run-{number}", Ready="True") for number in range(3000)]

    async def test() -> None:
        queue: WorkQueue[Key] = WorkQueue()
        resync = asyncio.create_task(looking(queue, objects))
        times: dict[str, list[float]] = {}
        while clock() < 3 * PERIOD:
            key = await queue.get()
            times.setdefault(key.name, []).append(clock())
            queue.done(key)
        resync.cancel()
        later = [time for looked_at in times.values() for time in looked_at[1:]]
        assert all(len(looked_at) in {3, 4} for looked_at in times.values())
        assert max(later.count(time) for time in set(later)) <= 5

    run(test())


def test_a_few_objects_are_looked_at_as_rarely_as_many() -> None:
    async def test() -> None:
        queue: WorkQueue[Key] = WorkQueue()
        resync = asyncio.create_task(looking(queue, [run_of("run")]))
        for _ in range(4):
            queue.done(await queue.get())
        assert clock() > 2 * PERIOD
        resync.cancel()

    run(test())


def test_at_rest_is_what_has_ended_and_is_not_being_deleted() -> None:
    assert is_at_rest(run_of("ended", Stalled="True"))
    assert not is_at_rest(run_of("running", Ready="False", Reconciling="True"))
    edited = run_of("edited", Ready="True")
    edited["metadata"]["generation"] = 2
    assert not is_at_rest(edited)
    going = run_of("going", Ready="True")
    going["metadata"]["deletionTimestamp"] = "2030-01-01T00:00:00Z"
    assert not is_at_rest(going)
    assert is_at_rest({**run_of("c", Promoted="False"), "kind": "Checkpoint"})
    assert not is_at_rest({**run_of("c"), "kind": "Checkpoint"})
