# SPDX-License-Identifier: Apache-2.0
"""The cost of an event depends on the objects it concerns, not on the size of a line or past runs."""

import asyncio
import random
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from types import FrameType
from typing import Any, cast

import pytest

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.engine.resources import CLAIM, POD
from finetune_operator.engine.watches import Watches
from finetune_operator.plan import Key, Manifest, Plan
from finetune_operator.reconcile.model_lines import CheckpointIndex, is_rejected
from finetune_operator.reconcile.platform.budgets import LAG
from finetune_operator.reconcile.registry import KIND_ROWS
from finetune_operator.reconcile.scheduling import affected_by_champion, related
from finetune_operator.runtime.caches import Caches
from finetune_operator.runtime.lookups import Lookups
from finetune_operator.runtime.snapshots import SnapshotReader
from finetune_operator.runtime.triggers import ChangeTriggers
from tests.unit.operator.endpoints import endpoint
from tests.unit.operator.memorycluster import FACTS
from tests.unit.operator.test_runtime_snapshotreader import checkpoint, dataset_version, obj

BEGIN = datetime(2030, 1, 1, tzinfo=UTC)
ENDED = {"conditions": [{"type": "Ready", "status": "True", "reason": "Promoted"}]}


def steps(work: Callable[[], object]) -> int:
    """Number of lines of Python that the work executes: its cost, whatever else the machine does."""
    lines = 0

    def trace(_: FrameType, event: str, __: object) -> Any:
        nonlocal lines
        lines += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return lines


def run(name: str, **status: object) -> Manifest:
    spec = {"modelLine": "line", "baseModel": {"uri": "pvc://m/x"}, "dataset": {"ref": {"name": "tickets"}}}
    return obj("FineTuneJob", name, spec=spec, status=status)


def record(name: str, job: str, version: int = 1, minute: int | None = None) -> Manifest:
    made = checkpoint(name, version=version)
    made["spec"]["lineage"]["job"] = {"name": job, "uid": f"uid-{job}"}
    made["status"] = {} if minute is None else {"promotedAt": (BEGIN + timedelta(minutes=minute)).isoformat()}
    return made


class Line:
    """The caches with one line of `length` ended runs, each with a promoted and an unpromoted Checkpoint."""

    def __init__(self, length: int) -> None:
        self.caches = Caches()
        self.reader = SnapshotReader(self.caches)
        self.champions: list[tuple[str, str]] = []
        self.keys: set[Key] = set()
        for number in range(length):
            name = f"run-{number}"
            self.caches.kinds["FineTuneJob"].put(run(name, **ENDED))
            self.caches.kinds["Checkpoint"].put(record(f"{name}-best", name, minute=number))
            self.caches.kinds["Checkpoint"].put(record(f"{name}-last", name))
        follower = endpoint(models=[{"name": "m", "follow": {"modelLine": "line"}}]).to_dict()
        follower["metadata"] |= {"uid": "uid-desk", "resourceVersion": "1"}
        self.caches.kinds["InferenceDeployment"].put(follower)
        self.reader.subscribe_champions(self._champion_changed)
        for kind, store in self.caches.kinds.items():
            store.subscribe(partial(self._changed, kind))

    def _champion_changed(self, namespace: str, model: str) -> None:
        self.champions.append((namespace, model))
        self.keys |= affected_by_champion(namespace, model, self.reader)

    def _changed(self, kind: str, old: Manifest | None, new: Manifest | None) -> None:
        self.keys |= related(kind, old, new, self.reader)

    def change(self, manifest: Manifest) -> set[tuple[str, str]]:
        """Keys that are reconciled because of this change."""
        self.keys = set()
        self.caches.kinds[manifest["kind"]].put(manifest)
        return {(key.kind, key.name) for key in self.keys}


@pytest.mark.parametrize("length", [3, 100])
def test_a_changed_checkpoint_of_a_long_line_concerns_its_own_run_alone(length: int) -> None:
    line = Line(length)
    changed = record("run-1-best", "run-1", version=2, minute=1)
    changed["metadata"]["labels"] = {"team": "a"}
    assert line.change(changed) == {("FineTuneJob", "run-1")}
    assert line.champions == []


@pytest.mark.parametrize("length", [3, 100])
def test_a_new_champion_wakes_followers_and_unfinished_runs_and_no_ended_one(length: int) -> None:
    line = Line(length)
    line.caches.kinds["FineTuneJob"].put(run("judging"))
    line.caches.kinds["Checkpoint"].put(record("judging-best", "judging"))
    assert line.champions == []
    looked_at = line.change(record("run-0-last", "run-0", version=2, minute=1000))
    assert looked_at == {
        ("FineTuneJob", "run-0"),
        ("FineTuneJob", "judging"),
        ("Checkpoint", "judging-best"),
        ("InferenceDeployment", "desk"),
    }
    assert line.champions == [("team", "line")]


def test_a_champion_that_is_rejected_deleted_or_going_is_another_champion() -> None:
    for number, after in enumerate(("rejected", "deleted", "going")):
        line = Line(5)
        last = record("run-4-best", "run-4", version=2 + number, minute=4)
        if after == "rejected":
            last["spec"]["approval"] = {"state": "Rejected", "reason": "worse"}
        if after == "going":
            last["metadata"]["deletionTimestamp"] = "2030-01-02T00:00:00Z"
        if after == "deleted":
            line.caches.kinds["Checkpoint"].remove(last)
        else:
            line.change(last)
        assert line.champions == [("team", "line")], after
        current = line.reader.checkpoints("team").champion("line")
        assert current is not None
        assert current.name == "run-3-best"


def test_an_ended_run_is_woken_by_nothing_that_it_once_needed() -> None:
    line = Line(5)
    dataset = obj("Dataset", "tickets", spec={}, status={"latestVersion": "tickets-1"})
    assert line.change(dataset) == {("DatasetVersion", "tickets-1")}
    line.change(run("waiting"))
    assert line.change({**dataset, "metadata": {**dataset["metadata"], "resourceVersion": "2"}}) == {
        ("FineTuneJob", "waiting"),
        ("DatasetVersion", "tickets-1"),
    }


def test_a_namespace_without_checkpoints_leaves_nothing_behind() -> None:
    line = Line(2)
    for manifest in list(line.caches.kinds["Checkpoint"]):
        line.caches.kinds["Checkpoint"].remove(manifest)
    assert line.reader._lines == {}


def test_the_index_of_a_line_agrees_with_a_walk_over_it() -> None:
    chance = random.Random(7)  # noqa: S311 - repeatable
    index = CheckpointIndex()
    known: dict[str, Checkpoint] = {}
    for step in range(2000):
        name = f"c{chance.randrange(20)}"
        if chance.random() < 0.2:
            index.remove(name)
            known.pop(name, None)
        else:
            made = record(name, "run", minute=chance.choice([None, *range(10)]))
            if chance.random() < 0.3:
                made["spec"]["approval"] = {"state": chance.choice(["Rejected", "Approved"]), "reason": "r"}
            if chance.random() < 0.2:
                made["metadata"]["deletionTimestamp"] = "2030-01-02T00:00:00Z"
            made["spec"]["modelLine"] = chance.choice(["line", "another"])
            known[name] = Checkpoint.model_validate(made)
            index.put(known[name])
        for model in ("line", "another"):
            members = [each for each in known.values() if each.spec.model_line == model]
            times = [each.status.promoted_at for each in members if each.status.promoted_at is not None]
            eligible = [
                (each.status.promoted_at, each.name)
                for each in members
                if each.status.promoted_at is not None
                and each.metadata.deletion_timestamp is None
                and not is_rejected(each)
            ]
            best = index.champion(model)
            assert (None if best is None else best.name) == (max(eligible)[1] if eligible else None), step
            now = BEGIN + timedelta(minutes=5)
            later = [time + timedelta(milliseconds=1) for time in times]
            assert index.promotion_time(model, now) == max([now, *later])
            assert {each.name for each in index.of_line(model)} == {each.name for each in members}


@pytest.mark.parametrize("parent", [True, False])
def test_a_changed_checkpoint_costs_the_same_however_many_rows_others_were_trained_on(
    *, parent: bool
) -> None:
    costs = []
    for number in (10, 1000):
        index = CheckpointIndex()
        for each in range(number):
            index.put(trained_on(f"c{each}", f"rows-{each}"))
        changed = trained_on("c5", "rows-5", "c4" if parent else None)
        index.put(changed)
        costs.append(steps(partial(index.put, changed)))
        assert index.is_origin("c4") == parent
        index.remove("c5")
        assert not index.is_origin("rows-5")
        assert not index.is_origin("c4")
        assert index.is_origin("rows-6")
    assert costs[0] == costs[1]


def trained_on(name: str, rows: str, parent: str | None = None) -> Checkpoint:
    made = record(name, f"run-of-{name}")
    made["spec"]["lineage"] |= {"datasetVersion": rows, "parentCheckpoint": parent}
    return Checkpoint.model_validate(made)


def with_versions(number: int) -> SnapshotReader:
    """The reader of a Dataset with a limit and this number of versions, all but the last of them old."""
    caches = Caches()
    reader = SnapshotReader(caches)
    spec = {"sources": [{"uri": "configmap://tickets/rows.jsonl"}], "versionHistoryLimit": number}
    status = {"latestVersion": f"tickets-{number - 1:05}"}
    caches.kinds["Dataset"].put(obj("Dataset", "tickets", spec=spec, status=status))
    for each in range(number):
        caches.kinds["DatasetVersion"].put(dataset_version(f"tickets-{each:05}", 1))
    return reader


def pass_over_a_version(reader: SnapshotReader) -> Plan:
    version = reader.resource(Key("DatasetVersion", "team", "tickets-00005"))
    assert version is not None
    snapshot = reader.snapshot(
        version, now=BEGIN, facts=FACTS, entropy=b"", service_accounts=frozenset(), progress=None
    )
    return KIND_ROWS["DatasetVersion"].reconcile(version, snapshot)


def test_a_pass_over_a_version_costs_the_same_however_many_versions_its_dataset_has() -> None:
    few, many = (with_versions(number) for number in (10, 400))
    for reader in (few, many):
        # What a first pass parses is kept.
        pass_over_a_version(reader)
    assert steps(partial(pass_over_a_version, few)) == steps(partial(pass_over_a_version, many))


class Answering:
    """An API server in which every claim exists."""

    async def get(self, *_: object) -> Manifest:
        return {"metadata": {"name": "claim", "uid": "uid"}}


def test_a_request_for_an_object_costs_the_same_however_many_others_were_requested() -> None:
    def cost(number: int) -> float:
        async def request() -> None:
            lookups = Lookups(cast("Any", Answering()), clock=lambda: 0.0)
            for each in range(number):
                await lookups.get(CLAIM, "team", f"claim-{each}")

        return steps(lambda: asyncio.run(request())) / number

    assert cost(800) < 1.2 * cost(200)


def test_the_starts_of_many_pods_are_counted_in_one_pass_of_their_profile() -> None:
    caches, queue = Caches(), Queued()
    ChangeTriggers(caches, SnapshotReader(caches), Watches(), cast("Any", queue), lambda: True)
    caches.kinds["ComputeProfile"].put(
        {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": "ComputeProfile",
            "metadata": {"name": "gpu", "uid": "gpu", "resourceVersion": "1"},
            "spec": {"cost": {"budget": {"period": "Day", "deviceHoursPerNamespace": 2}}},
        }
    )
    queue.delays.clear()
    for number in range(3):
        labels = {"finetune.dev/profile": "gpu", "finetune.dev/stage": "train", "finetune.dev/devices": "1"}
        pod = obj("Pod", f"pod-{number}")
        pod["metadata"] |= {"labels": labels, "creationTimestamp": "2030-01-01T00:00:00Z"}
        started = {"state": {"running": {"startedAt": "2030-01-01T00:00:00Z"}}}
        caches.children[POD].put({**pod, "status": {"containerStatuses": [started]}})
    # A pass before that would count nothing of them.
    assert queue.delays == [("ComputeProfile", LAG.total_seconds())] * 3


class Queued:
    """A queue that keeps the kinds and delays of the keys."""

    def __init__(self) -> None:
        self.delays: list[tuple[str, float]] = []

    def add(self, key: Key, delay: float = 0.0) -> None:
        self.delays.append((key.kind, delay))
