# SPDX-License-Identifier: Apache-2.0
"""maxRunSeconds: how long a run may use devices, and how it continues."""

from datetime import timedelta
from typing import Any

import pytest

from finetune_client.local.cluster import at
from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.reconcile.finetunejob.identity import mark
from tests.unit.operator.memorycluster import MemoryCluster
from tests.unit.operator.runobjects import CHECKPOINT, JOB, trained
from tests.unit.operator.runsteps import reached


def training(*, own: int | None = None, offered: int | None = None, **compute: Any) -> MemoryCluster:
    cluster = reached("train", compute=compute)
    if own is not None:
        cluster.change("FineTuneJob", JOB, compute={**compute, "maxRunSeconds": own})
    if offered is not None:
        cluster.change("ComputeProfile", "cpu", limits={"runSeconds": offered})
    cluster.start("train", after=5)
    cluster.settle()
    return cluster


def pass_time(cluster: MemoryCluster, seconds: float) -> None:
    cluster.now += timedelta(seconds=seconds)
    cluster.settle()


def stalled(cluster: MemoryCluster) -> str:
    condition = cluster.condition("FineTuneJob", JOB, "Stalled")
    assert condition is not None
    assert condition["reason"] == "MaxRunSecondsExceeded"
    message: str = condition["message"]
    return message


@pytest.mark.parametrize(
    ("own", "offered", "limit", "advice"),
    [
        (600, None, 600, "raise spec.compute.maxRunSeconds of FineTuneJob tickets-v1"),
        (None, 900, 900, "ask the platform team to raise limits.runSeconds of ComputeProfile cpu"),
        (600, 900, 600, "raise spec.compute.maxRunSeconds of FineTuneJob tickets-v1"),
        (1200, 900, 900, "ask the platform team to raise limits.runSeconds of ComputeProfile cpu"),
    ],
)
def test_a_run_that_has_used_its_time_is_stopped_in_the_foreground_and_reports_how_to_continue(
    own: int | None, offered: int | None, limit: int, advice: str
) -> None:
    cluster = training(own=own, offered=offered)
    assert cluster.plan("FineTuneJob", JOB).requeue_after == limit
    pass_time(cluster, limit - 1)
    assert cluster.has_stage_job("train")
    cluster.now += timedelta(seconds=1)
    plan = cluster.plan("FineTuneJob", JOB)
    assert [delete.propagation for delete in plan.delete] == ["Foreground"]
    cluster.settle()
    assert not cluster.has_stage_job("train")
    message = stalled(cluster)
    assert f"{limit} seconds" in message
    assert advice in message
    before = cluster.writes
    pass_time(cluster, 300)
    assert cluster.writes == before


def test_the_pods_save_their_state_before_the_run_ends() -> None:
    cluster = training(own=600)
    cluster.now += timedelta(seconds=600)
    cluster.stage_job("train")["metadata"]["deletionTimestamp"] = at(cluster.now)
    cluster.settle()
    assert cluster.states("FineTuneJob", JOB)["Reconciling"] == "Suspending"


def test_a_run_continues_when_its_limit_is_raised_and_not_before() -> None:
    cluster = training(own=600)
    pass_time(cluster, 600)
    pass_time(cluster, 86400)
    stalled(cluster)
    cluster.change("FineTuneJob", JOB, compute={"maxRunSeconds": 900})
    cluster.settle()
    assert cluster.states("FineTuneJob", JOB)["Reconciling"] == "Queued"
    cluster.start("train", after=1000)
    cluster.settle()
    assert cluster.plan("FineTuneJob", JOB).requeue_after == 300, "queued time does not count"
    cluster.succeed("train", trained(), after=100)
    cluster.settle()
    assert set(cluster.of("Checkpoint")) == {CHECKPOINT}


def test_suspended_time_does_not_count() -> None:
    cluster = training(own=600)
    pass_time(cluster, 400)
    cluster.change("FineTuneJob", JOB, suspend=True)
    cluster.settle()
    pass_time(cluster, 86400)
    cluster.change("FineTuneJob", JOB, suspend=False)
    cluster.settle()
    cluster.start("train", after=60)
    cluster.settle()
    assert cluster.plan("FineTuneJob", JOB).requeue_after == 200


def test_a_run_that_ended_in_time_keeps_its_result_however_late_it_is_seen() -> None:
    cluster = training(own=600)
    cluster.succeed("train", trained(), after=590)
    pass_time(cluster, 86400)
    assert set(cluster.of("Checkpoint")) == {CHECKPOINT}


def test_the_limit_makes_no_other_run() -> None:
    cluster = reached("train")
    before = mark(cluster.job(JOB))
    for seconds in (60, 900):
        cluster.change("FineTuneJob", JOB, compute={"maxRunSeconds": seconds})
        assert mark(cluster.job(JOB)) == before
    job = cluster.objects["FineTuneJob", JOB]
    job["spec"]["compute"] = {"devices": 2, "maxRunSeconds": 60}
    assert mark(FineTuneJob.model_validate(job)) != before
