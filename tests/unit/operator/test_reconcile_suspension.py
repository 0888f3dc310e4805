# SPDX-License-Identifier: Apache-2.0
"""A suspended run: its state is saved, its devices are free, and passes without a change write nothing."""

from datetime import timedelta

from finetune_client.local.cluster import at
from tests.unit.operator.memorycluster import MemoryCluster
from tests.unit.operator.runobjects import (
    JOB,
    dataset,
    finetunejob,
    preflighted,
    prepared,
    prerequisites,
    profile,
    trained,
)
from tests.unit.operator.runsteps import reached


def terminating() -> MemoryCluster:
    """A run that was suspended while it trained: the Job is on its way, and its pod saves the state."""
    cluster = reached("train")
    cluster.start("train", after=3)
    cluster.now += timedelta(seconds=60)
    cluster.change("FineTuneJob", JOB, suspend=True)
    plan = cluster.plan("FineTuneJob", JOB)
    assert plan.status is not None
    assert plan.status["usage"]["seconds"] == 60
    cluster.objects["FineTuneJob", JOB]["status"] = plan.status
    cluster.stage_job("train")["metadata"]["deletionTimestamp"] = at(cluster.now)
    return cluster


def test_a_pass_while_a_pod_saves_its_state_writes_nothing_however_much_time_goes_by() -> None:
    cluster = terminating()
    before = cluster.objects["FineTuneJob", JOB]["status"]
    cluster.now += timedelta(seconds=20)
    assert cluster.plan("FineTuneJob", JOB).status == before
    cluster.now += timedelta(seconds=20)
    assert cluster.plan("FineTuneJob", JOB).status == before


def test_the_time_of_saving_is_counted_once_the_pod_has_ended() -> None:
    cluster = terminating()
    started = at(cluster.now - timedelta(seconds=60))
    cluster.now += timedelta(seconds=20)
    ended = {"exitCode": 20, "startedAt": started, "finishedAt": at(cluster.now)}
    cluster.pod("train", {"terminated": ended})
    cluster.now += timedelta(seconds=20)
    cluster.reconcile("FineTuneJob", JOB)
    usage = cluster.job(JOB).status.usage
    assert usage is not None
    assert usage.seconds == 80
    before = cluster.writes
    cluster.now += timedelta(seconds=20)
    cluster.reconcile("FineTuneJob", JOB)
    assert cluster.writes == before


def test_a_run_is_not_suspended_while_a_pod_of_a_deleted_job_still_runs() -> None:
    cluster = reached("train")
    cluster.start("train")
    job = cluster.stage_job("train")
    name, pod = next((n, p) for n, p in cluster.of("Pod").items() if n.startswith(job["metadata"]["name"]))
    cluster.remove("Job", job["metadata"]["name"])
    cluster.objects["Pod", name] = pod
    cluster.change("FineTuneJob", JOB, suspend=True)
    cluster.settle()
    assert cluster.states("FineTuneJob", JOB)["Reconciling"] == "Suspending"
    cluster.remove("Pod", name)
    cluster.settle()
    assert "Suspended" in cluster.states("FineTuneJob", JOB)


def test_suspending_deletes_the_running_job_in_the_foreground_and_resuming_creates_it_anew() -> None:
    cluster = reached("train")
    cluster.start("train", after=3)
    cluster.now += timedelta(seconds=60)
    cluster.change("FineTuneJob", JOB, suspend=True)
    plan = cluster.reconcile("FineTuneJob", JOB)
    assert [delete.propagation for delete in plan.delete] == ["Foreground"]
    assert cluster.states("FineTuneJob", JOB)["Reconciling"] == "Suspending"
    cluster.settle()
    states = cluster.states("FineTuneJob", JOB)
    assert states["Suspended"] == "Suspended"
    assert {"Ready", "Reconciling", "Stalled"}.isdisjoint(states)
    assert not cluster.has_stage_job("train")
    cluster.change("FineTuneJob", JOB, suspend=False)
    cluster.settle()
    assert cluster.has_stage_job("train")
    assert "Suspended" not in cluster.states("FineTuneJob", JOB)
    assert [event.reason for event in cluster.events if event.reason in {"Suspended", "Resumed"}] == [
        "Suspended",
        "Resumed",
    ]


def test_device_seconds_cover_the_time_before_and_after_a_suspension() -> None:
    cluster = MemoryCluster(
        *prerequisites()[1:], profile(cost={"pricePerDeviceHour": 3.6, "currency": "EUR"}), dataset()
    )
    cluster.add(finetunejob(compute={"devices": 2}))
    cluster.settle()
    cluster.succeed("prepare", prepared())
    cluster.settle()
    cluster.succeed("preflight", preflighted())
    cluster.settle()
    cluster.start("train", after=3)
    cluster.now += timedelta(seconds=60)
    cluster.change("FineTuneJob", JOB, suspend=True)
    cluster.settle()
    cluster.now += timedelta(hours=1)
    cluster.change("FineTuneJob", JOB, suspend=False)
    cluster.settle()
    cluster.start("train", after=4)
    cluster.settle()
    cluster.succeed("train", trained(), after=40)
    cluster.settle()
    status = cluster.job(JOB).status
    train = next(stage for stage in status.stages if stage.name == "train")
    assert (train.queued_seconds, train.seconds, train.device_seconds) == (7, 100, 200)
    assert status.cost is not None
    assert (status.cost.device_seconds, status.cost.amount, status.cost.currency) == (200, 0.2, "EUR")
    (checkpoint,) = cluster.of("Checkpoint").values()
    assert checkpoint["spec"]["cost"] == {"deviceSeconds": 200.0, "amount": 0.2, "currency": "EUR"}


def test_a_job_that_is_terminating_under_suspension_is_waited_for() -> None:
    cluster = reached("train")
    cluster.change("FineTuneJob", JOB, suspend=True)
    cluster.stage_job("train")["metadata"]["deletionTimestamp"] = "2030-01-02T03:01:00Z"
    plan = cluster.reconcile("FineTuneJob", JOB)
    assert plan.delete == ()
    assert cluster.states("FineTuneJob", JOB)["Reconciling"] == "Suspending"


def test_a_stray_job_under_suspension_is_deleted_without_a_word_of_resuming() -> None:
    cluster = reached("train")
    stray = cluster.stage_job("train")
    cluster.change("FineTuneJob", JOB, suspend=True)
    cluster.settle()
    cluster.add(stray)
    cluster.settle()
    assert not cluster.has_stage_job("train")
    assert "Resumed" not in [event.reason for event in cluster.events]
