# SPDX-License-Identifier: Apache-2.0
"""A schedule starts one run per trigger: at times, for new rows and on request, whatever happens between."""

import random
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest

from finetune_operator.api.finetune_schedule import FineTuneSchedule, FineTuneScheduleStatus
from finetune_operator.manifests.labels import KEY as KEY_ANNOTATION
from finetune_operator.manifests.labels import short_hash
from finetune_operator.plan import Manifest
from tests.unit.operator.memorycluster import NOW, MemoryCluster
from tests.unit.operator.runobjects import (
    DATASET,
    VERSION,
    dataset,
    digest,
    finetunejob,
    prepared,
    prerequisites,
)
from tests.unit.operator.test_sweep_crashes import parts

KIND: Final = "FineTuneSchedule"
NAME: Final = "nightly"
NIGHTLY: Final = {"schedule": "0 3 * * *", "timeZone": "UTC"}
DAY: Final = timedelta(days=1)


def schedule(template: Manifest | None = None, **spec: Any) -> Manifest:
    fields: Manifest = {
        "triggers": {"cron": NIGHTLY},
        "template": {"spec": finetunejob(**(template or {}))["spec"]},
        **spec,
    }
    metadata = {"name": NAME, "uid": "5c4e0000-0000-4000-8000-000000000001"}
    return {"apiVersion": "finetune.dev/v1alpha1", "kind": KIND, "metadata": metadata, "spec": fields}


def scheduled(template: Manifest | None = None, **spec: Any) -> MemoryCluster:
    """A schedule after its first passes, at 3:00, on rows that are prepared."""
    cluster = MemoryCluster(*prerequisites(), dataset(), schedule(template, **spec))
    for _ in range(3):
        cluster.reconcile("Dataset", DATASET)
    cluster.succeed("prepare", prepared(), after=5)
    for _ in range(3):
        cluster.reconcile("Dataset", DATASET)
    settle(cluster)
    return cluster


def settle(cluster: MemoryCluster) -> None:
    """Passes over the schedule alone, until none writes anything."""
    before = -1
    while cluster.writes != before:
        before = cluster.writes
        cluster.reconcile(KIND, NAME)


def at(cluster: MemoryCluster, time: datetime) -> set[str]:
    """The names of the runs at a time."""
    cluster.now = time
    settle(cluster)
    return set(cluster.of("FineTuneJob"))


def status(cluster: MemoryCluster) -> FineTuneScheduleStatus:
    return FineTuneSchedule.model_validate(cluster.objects[KIND, NAME]).status


def message(cluster: MemoryCluster) -> str:
    return status(cluster).conditions[-1].message


def named(key: str) -> str:
    return f"{NAME}-{short_hash(key, length=8)}"


def nightly(time: datetime) -> str:
    """The run of a time."""
    return named(f"cron/{time:%Y-%m-%dT%H:%M}Z")


def end(cluster: MemoryCluster, name: str, state: str = "Ready", reason: str = "Promoted") -> None:
    condition = {
        "type": state,
        "status": "True",
        "reason": reason,
        "message": "the end",
        "lastTransitionTime": "2030-01-02T03:00:00Z",
    }
    cluster.set_status("FineTuneJob", name, {"observedGeneration": 1, "conditions": [condition]})


def next_version(cluster: MemoryCluster, digit: str, *, changed: int | None, than: str | None = None) -> str:
    """The Dataset gets a version with this digit in its digest; its name.

    `changed`: rows that differ from version `than`, by default the one before.
    """
    before = cluster.objects["Dataset", DATASET]["status"]["latestVersion"]
    version = deepcopy(cluster.objects["DatasetVersion", before])
    name = f"{DATASET}-{digit * 12}"
    version["metadata"] |= {"name": name}
    version["spec"]["digest"] = digest(digit)
    cluster.add({key: value for key, value in version.items() if key != "status"})
    known: Manifest = {"latestVersion": name}
    if changed is not None:
        known["difference"] = {"previous": than or before, "added": changed - 1, "removed": 0, "changed": 1}
    old = {k: v for k, v in cluster.objects["Dataset", DATASET]["status"].items() if k != "difference"}
    cluster.set_status("Dataset", DATASET, old | known)
    settle(cluster)
    return name


def test_each_time_starts_one_run_of_the_template() -> None:
    cluster = scheduled()
    assert not cluster.of("FineTuneJob")
    assert status(cluster).next_at == NOW + DAY

    assert at(cluster, NOW + DAY - timedelta(minutes=1)) == set()
    assert at(cluster, NOW + DAY) == {nightly(NOW + DAY)}
    run = cluster.objects["FineTuneJob", nightly(NOW + DAY)]
    assert {key: run["spec"][key] for key in ("modelLine", "baseModel", "dataset")} == {
        key: finetunejob()["spec"][key] for key in ("modelLine", "baseModel", "dataset")
    }
    assert run["metadata"]["annotations"] == {KEY_ANNOTATION: "cron/2030-01-03T03:00Z"}
    assert "ownerReferences" not in run["metadata"]
    end(cluster, nightly(NOW + DAY))

    assert at(cluster, NOW + DAY + timedelta(hours=23)) == {nightly(NOW + DAY)}
    assert at(cluster, NOW + 2 * DAY) == {nightly(NOW + DAY), nightly(NOW + 2 * DAY)}
    assert cluster.states(KIND, NAME) == {"Ready": "Scheduled"}
    assert [(each.trigger, each.run) for each in status(cluster).last_triggers] == [
        ("Cron", nightly(NOW + 2 * DAY))
    ]


def test_an_idle_schedule_writes_nothing() -> None:
    cluster = scheduled()
    before = cluster.writes
    for minute in range(1, 60):
        at(cluster, NOW + timedelta(minutes=minute))
    assert cluster.writes == before


def test_of_missed_times_only_the_last_one_starts_a_run() -> None:
    assert at(scheduled(), NOW + 5 * DAY + timedelta(hours=7)) == {nightly(NOW + 5 * DAY)}


def test_a_time_beyond_the_deadline_starts_none_and_is_named() -> None:
    cluster = scheduled(startingDeadlineSeconds=3600)
    assert at(cluster, NOW + DAY + timedelta(hours=2)) == set()
    assert "the run of 2030-01-03 03:00 UTC was left out" in message(cluster)
    assert at(cluster, NOW + 2 * DAY + timedelta(minutes=50)) == {nightly(NOW + 2 * DAY)}


@pytest.mark.parametrize(
    ("policy", "runs", "cancelled"),
    [("Forbid", {1}, False), ("Replace", {1, 2}, True), ("Allow", {1, 2}, False)],
)
def test_what_a_time_does_while_a_run_is_unfinished(policy: str, runs: set[int], cancelled: bool) -> None:
    cluster = scheduled(concurrencyPolicy=policy)
    at(cluster, NOW + DAY)
    assert at(cluster, NOW + 2 * DAY) == {nightly(NOW + day * DAY) for day in runs}
    first = cluster.objects["FineTuneJob", nightly(NOW + DAY)]
    assert first["spec"].get("cancel", False) == cancelled
    if policy == "Forbid":
        assert f"waits for the end of {nightly(NOW + DAY)}, which runs for 24 h" in message(cluster)
        at(cluster, NOW + 3 * DAY)
        end(cluster, nightly(NOW + DAY))
        # The newest of the times that waited.
        assert at(cluster, NOW + 3 * DAY + timedelta(hours=1)) == {
            nightly(NOW + DAY),
            nightly(NOW + 3 * DAY),
        }


def test_a_request_starts_a_run_per_value_also_within_the_interval() -> None:
    cluster = scheduled(triggers={})
    assert cluster.objects[KIND, NAME]["status"]["display"]["triggers"] == "on request"
    cluster.annotate(KIND, NAME, run_requested="new names")
    assert at(cluster, NOW) == {named("request/new names")}
    end(cluster, named("request/new names"))
    assert at(cluster, NOW + DAY) == {named("request/new names")}
    cluster.annotate(KIND, NAME, run_requested="x" * 300)
    assert len(at(cluster, NOW + DAY + timedelta(minutes=1))) == 2


def test_a_trigger_within_the_interval_waits() -> None:
    cluster = scheduled(triggers={"cron": {"schedule": "*/30 * * * *"}}, minIntervalSeconds=7200)
    first, half = NOW + timedelta(minutes=30), timedelta(minutes=30)
    assert at(cluster, first) == {nightly(first)}
    end(cluster, nightly(first))
    for step in (1, 2, 3):
        assert at(cluster, first + step * half) == {nightly(first)}
    assert "waits until 7200 s after the last start" in message(cluster)
    assert at(cluster, first + 4 * half) == {nightly(first), nightly(first + 4 * half)}


def test_new_rows_start_a_run_when_they_are_enough() -> None:
    cluster = scheduled(triggers={"newVersion": {"minChangedRows": 100}}, minIntervalSeconds=0)
    # No Checkpoint of the line was trained on the version that exists.
    first = named(f"version/{digest('d')}")
    assert set(cluster.of("FineTuneJob")) == {first}
    assert cluster.objects["FineTuneJob", first]["spec"]["dataset"]["ref"]["version"] == VERSION
    end(cluster, first)
    next_version(cluster, "1", changed=60)
    assert status(cluster).seen_version is not None
    assert set(cluster.of("FineTuneJob")) == {first}
    name = next_version(cluster, "2", changed=60)
    second = named(f"version/{digest('2')}")
    assert set(cluster.of("FineTuneJob")) == {first, second}
    assert cluster.objects["FineTuneJob", second]["spec"]["dataset"]["ref"]["version"] == name
    assert "120 changed rows" in message(cluster) or "unfinished" in message(cluster)
    end(cluster, second)
    # How many rows changed is not known.
    next_version(cluster, "3", changed=None)
    assert len(cluster.of("FineTuneJob")) == 3
    end(cluster, named(f"version/{digest('3')}"))
    # The schedule has not seen the version that this one is compared with.
    next_version(cluster, "4", changed=2, than=VERSION)
    assert len(cluster.of("FineTuneJob")) == 4


def test_a_deleted_run_is_not_made_again() -> None:
    cluster = scheduled()
    at(cluster, NOW + DAY)
    run = cluster.objects.pop(("FineTuneJob", nightly(NOW + DAY)))
    assert at(cluster, NOW + DAY + timedelta(minutes=1)) == set()
    # The watch of a new process may deliver it later.
    assert [each.name for each in status(cluster).active] == [nightly(NOW + DAY)]
    assert cluster.plan(KIND, NAME).requeue_after == 120
    cluster.objects["FineTuneJob", nightly(NOW + DAY)] = run
    at(cluster, NOW + DAY + timedelta(minutes=2))
    assert status(cluster).active[0].missing_since is None

    del cluster.objects["FineTuneJob", nightly(NOW + DAY)]
    at(cluster, NOW + DAY + timedelta(hours=3))
    assert at(cluster, NOW + DAY + timedelta(hours=4)) == set()
    assert status(cluster).active == ()


def test_three_failures_in_a_row_stop_it_until_an_edit() -> None:
    cluster = scheduled()
    outcomes = [
        ("Stalled", "OutOfMemory"),
        ("Stalled", "StageFailed"),
        ("Stalled", "GateFailed"),
        ("Stalled", "OutOfMemory"),
        ("Stalled", "Cancelled"),
        ("Stalled", "OutOfMemory"),
        ("Stalled", "InvalidData"),
    ]
    for day, outcome in enumerate(outcomes, 1):
        at(cluster, NOW + day * DAY)
        assert cluster.states(KIND, NAME) == {"Ready": "Scheduled"}
        end(cluster, nightly(NOW + day * DAY), *outcome)
    runs = at(cluster, NOW + 9 * DAY)
    assert len(runs) == len(outcomes)
    assert cluster.states(KIND, NAME) == {"Stalled": "RunsFail"}
    assert f"The last one, {nightly(NOW + 7 * DAY)}: InvalidData: the end" in message(cluster)
    assert at(cluster, NOW + 10 * DAY) == runs
    cluster.change(KIND, NAME, minIntervalSeconds=60)
    assert len(at(cluster, NOW + 10 * DAY + timedelta(minutes=1))) == len(outcomes) + 1
    assert cluster.states(KIND, NAME) == {"Ready": "Scheduled"}


def test_a_suspended_schedule_starts_nothing_and_the_last_missed_time_afterwards() -> None:
    cluster = scheduled(suspend=True)
    assert at(cluster, NOW + 3 * DAY) == set()
    assert cluster.states(KIND, NAME) == {"Suspended": "Suspended"}
    cluster.change(KIND, NAME, suspend=False)
    assert at(cluster, NOW + 3 * DAY + timedelta(hours=1)) == {nightly(NOW + 3 * DAY)}


def test_after_an_edit_of_the_times_those_before_do_not_count() -> None:
    cluster = scheduled(triggers={"cron": {"schedule": "0 3 1 1 *"}})
    assert at(cluster, NOW + 40 * DAY + timedelta(minutes=10)) == set()
    cluster.change(KIND, NAME, triggers={"cron": {"schedule": "*/5 * * * *"}})
    assert at(cluster, NOW + 40 * DAY + timedelta(minutes=11)) == set()
    assert len(at(cluster, NOW + 40 * DAY + timedelta(minutes=15))) == 1


def test_times_that_an_edit_adds_count_from_the_edit_on() -> None:
    cluster = scheduled(triggers={})
    assert at(cluster, NOW + 40 * DAY + timedelta(minutes=10)) == set()
    cluster.change(KIND, NAME, triggers={"cron": NIGHTLY})
    assert at(cluster, NOW + 40 * DAY + timedelta(minutes=11)) == set()
    assert len(at(cluster, NOW + 41 * DAY)) == 1


@pytest.mark.parametrize(
    ("cron", "what"),
    [
        ({"schedule": "61 3 * * *"}, "spec.triggers.cron.schedule 61 3 * * *: bad minute"),
        ({"schedule": "0 3 30 2 *"}, "bad day-of-month"),
        ({"schedule": "0 3 * * 1", "timeZone": "Europe/Berln"}, "timeZone Europe/Berln is unknown"),
    ],
)
def test_times_that_never_come_are_refused_at_once(cron: Manifest, what: str) -> None:
    cluster = scheduled(triggers={"cron": cron})
    assert cluster.states(KIND, NAME) == {"Stalled": "InvalidSpec"}
    assert what in message(cluster)
    cluster.change(KIND, NAME, triggers={"cron": NIGHTLY})
    settle(cluster)
    assert cluster.states(KIND, NAME) == {"Ready": "Scheduled"}


def test_what_every_run_needs_is_missed_before_the_first_time() -> None:
    cluster = scheduled({"compute": {"profile": "a100"}})
    assert cluster.states(KIND, NAME) == {"Reconciling": "ProfileNotFound"}
    assert "ComputeProfile a100 of spec.template.spec.compute.profile does not exist" in message(cluster)
    other = scheduled({"dataset": {"ref": {"name": "mails"}}})
    assert other.states(KIND, NAME) == {"Reconciling": "DatasetNotFound"}


def test_a_run_of_somebody_else_with_the_name_is_not_taken_over() -> None:
    cluster = scheduled()
    foreign = finetunejob()
    foreign["metadata"] = {"name": nightly(NOW + DAY)}
    cluster.add(foreign)
    at(cluster, NOW + DAY)
    assert cluster.states(KIND, NAME) == {"Reconciling": "NameConflict"}


def test_a_lost_status_starts_no_second_run_of_a_time() -> None:
    cluster = scheduled()
    at(cluster, NOW + DAY)
    cluster.set_status(KIND, NAME, {"observedGeneration": -1})
    assert at(cluster, NOW + DAY + timedelta(hours=1)) == {nightly(NOW + DAY)}
    assert [each.name for each in status(cluster).active] == [nightly(NOW + DAY)]


def test_a_clock_that_jumps_starts_at_most_one_run() -> None:
    cluster = scheduled()
    ahead = at(cluster, NOW + 400 * DAY)
    assert len(ahead) == 1
    end(cluster, *ahead)
    assert at(cluster, NOW + DAY) == ahead
    assert at(cluster, NOW + 401 * DAY) == {*ahead, nightly(NOW + 401 * DAY)}


WRITES: Final = 8
"""More than the writes of the days below."""


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("crash", range(WRITES))
def test_a_crash_at_a_write_neither_loses_a_trigger_nor_starts_a_second_run(
    crash: int, *, after: bool
) -> None:
    cluster = scheduled()
    writes = 0

    def passes() -> None:
        """Passes until none writes; the one with the write `crash` ends before or after it."""
        nonlocal writes
        while True:
            start = cluster.writes
            for part in parts(cluster.plan(KIND, NAME)):
                seen = cluster.writes
                if writes == crash and not after:
                    writes += 1
                    break
                cluster.carry_out(KIND, NAME, part, crash_before_status=part.status is None)
                writes += cluster.writes > seen
                if writes == crash + 1 and after and cluster.writes > seen:
                    break
            else:
                if cluster.writes == start:
                    return

    for day in (1, 2):
        cluster.now = NOW + day * DAY
        passes()
        end(cluster, nightly(cluster.now))
        cluster.now += timedelta(hours=1)
        passes()
    assert set(cluster.of("FineTuneJob")) == {nightly(NOW + DAY), nightly(NOW + 2 * DAY)}
    assert status(cluster).last_succeeded == nightly(NOW + 2 * DAY)
    assert status(cluster).active == ()


def test_two_years_of_mondays_in_berlin_with_downtime_and_slow_runs() -> None:
    numbers = random.Random(0)  # noqa: S311 - not a secret
    cluster = scheduled(triggers={"cron": {"schedule": "30 2 * * 1", "timeZone": "Europe/Berlin"}})
    finish: dict[str, datetime] = {}
    last = NOW + timedelta(days=730)
    while cluster.now < last:
        following = status(cluster).next_at
        assert following is not None
        time = following + timedelta(minutes=numbers.choice((0, 0, 0, 1, 300, 30_000)))
        for name, when in list(finish.items()):
            if when <= time:
                end(cluster, name)
                del finish[name]
        for name in at(cluster, time) - set(finish):
            is_new = not cluster.objects["FineTuneJob", name]["status"].get("conditions")
            if is_new:
                finish[name] = time + timedelta(hours=numbers.choice((1, 5, 200)))
    keys = sorted(
        job["metadata"]["annotations"][KEY_ANNOTATION].removeprefix("cron/")
        for job in cluster.of("FineTuneJob").values()
    )
    hours = {key[11:] for key in keys}
    assert len(keys) == len(set(keys)) > 50
    assert hours == {"01:30Z", "00:30Z"}, "winter and summer"
    assert all(datetime.fromisoformat(key).astimezone(UTC).weekday() == 0 for key in keys)
