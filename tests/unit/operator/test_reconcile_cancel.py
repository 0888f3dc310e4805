# SPDX-License-Identifier: Apache-2.0
"""A cancelled run: nothing of it runs again, whatever becomes of the field that cancelled it."""

from datetime import timedelta
from typing import Any

import pytest

from finetune_client.local.cluster import at
from finetune_operator.manifests.labels import RECORDED_RUN
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.finetunejob.identity import mark
from finetune_operator.reconcile.registry import KIND_ROWS
from tests.unit.operator.memorycluster import MemoryCluster
from tests.unit.operator.runobjects import (
    CHECKPOINT,
    JOB,
    dataset,
    evaluated,
    finetunejob,
    prerequisites,
    trained,
)
from tests.unit.operator.runsteps import ended, reached
from tests.unit.operator.test_reconcile_restored import NEW_UID, saved, wiped


def cancel(cluster: MemoryCluster, *, value: bool = True) -> None:
    cluster.change("FineTuneJob", JOB, cancel=value)


def training() -> MemoryCluster:
    """A run that has trained for 60 s on two devices."""
    cluster = reached("train", compute={"devices": 2})
    cluster.start("train", after=5)
    cluster.now += timedelta(seconds=60)
    return cluster


def annotation(cluster: MemoryCluster) -> str:
    marks = cluster.objects["FineTuneJob", JOB]["metadata"].get("annotations", {})
    found: str = marks.get(RECORDED_RUN, "")
    return found


def events(cluster: MemoryCluster, *reasons: str) -> list[str]:
    return [event.reason for event in cluster.events if event.reason in reasons]


def is_cancelled(cluster: MemoryCluster) -> bool:
    states = cluster.states("FineTuneJob", JOB)
    others = {"Ready", "Reconciling", "Suspended"} & states.keys()
    return states.get("Stalled") == "Cancelled" and not others


def unfinished_jobs(cluster: MemoryCluster) -> list[str]:
    """Jobs of the run that can still have a pod."""
    jobs = cluster.of("Job").items()
    return [name for name, job in jobs if name.startswith(JOB) and "conditions" not in job["status"]]


def test_a_run_that_is_cancelled_before_anything_started_ends_without_a_job() -> None:
    cluster = MemoryCluster(*prerequisites(), dataset(), finetunejob(cancel=True))
    cluster.settle()

    assert is_cancelled(cluster)
    assert cluster.job(JOB).status.phase == "Cancelled"
    assert unfinished_jobs(cluster) == []
    assert annotation(cluster) == mark(cluster.job(JOB), cancelled=True)
    assert annotation(cluster).endswith(".cancelled")


def test_cancelling_and_the_time_so_far_are_recorded_before_the_first_deletion() -> None:
    cluster = training()
    cancel(cluster)
    first = cluster.reconcile("FineTuneJob", JOB)
    assert first.delete == ()
    assert first.metadata is not None
    assert first.metadata["annotations"][RECORDED_RUN].endswith(".cancelled")
    assert cluster.states("FineTuneJob", JOB)["Reconciling"] == "Cancelling"
    assert cluster.objects["FineTuneJob", JOB]["status"]["usage"]["deviceSeconds"] == 120

    second = cluster.reconcile("FineTuneJob", JOB)
    assert [delete.propagation for delete in second.delete] == ["Foreground"]
    assert second.metadata is None


def test_a_run_that_is_cancelled_while_it_trains_stops_and_has_lost_its_training() -> None:
    cluster = training()
    cancel(cluster)
    cluster.settle()

    assert is_cancelled(cluster)
    said = cluster.condition("FineTuneJob", JOB, "Stalled")
    assert said is not None
    assert "To train again, create a FineTuneJob with another name" in said["message"]
    assert unfinished_jobs(cluster) == []
    status = cluster.objects["FineTuneJob", JOB]["status"]
    assert "usage" not in status
    (train,) = (stage for stage in status["stages"] if stage["name"] == "train")
    assert train["deviceSeconds"] == 120
    assert train["lost"] == status["cost"]["lost"] == [{"cause": "Cancelled", "deviceSeconds": 120.0}]
    assert events(cluster, "Cancelled", "StageFailed") == ["Cancelled"]


def test_pods_keep_their_grace_period_and_passes_meanwhile_write_nothing() -> None:
    cluster = training()
    cancel(cluster)
    cluster.reconcile("FineTuneJob", JOB)
    plan = cluster.plan("FineTuneJob", JOB)
    assert plan.status is not None
    cluster.objects["FineTuneJob", JOB]["status"] = plan.status
    cluster.stage_job("train")["metadata"]["deletionTimestamp"] = at(cluster.now)
    cluster.now += timedelta(seconds=20)

    again = cluster.plan("FineTuneJob", JOB)
    assert (again.status, again.delete, again.metadata) == (plan.status, (), None)
    said = cluster.condition("FineTuneJob", JOB, "Reconciling")
    assert said is not None
    assert (said["reason"], said["message"]) == (
        "Cancelling",
        "waiting for the pods to save their state and end",
    )


def test_a_run_is_not_cancelled_while_a_pod_of_a_deleted_job_still_runs() -> None:
    cluster = training()
    job = cluster.stage_job("train")["metadata"]["name"]
    name, pod = next((n, p) for n, p in cluster.of("Pod").items() if n.startswith(job))
    cluster.remove("Job", job)
    cluster.objects["Pod", name] = pod
    cancel(cluster)
    cluster.settle()
    assert cluster.states("FineTuneJob", JOB)["Reconciling"] == "Cancelling"
    cluster.remove("Pod", name)
    cluster.settle()
    assert is_cancelled(cluster)


def test_a_queued_run_leaves_its_queue() -> None:
    cluster = reached("train")
    cluster.stage_job("train")["spec"]["suspend"] = True
    cancel(cluster)
    cluster.settle()

    assert is_cancelled(cluster)
    assert unfinished_jobs(cluster) == []
    assert "lost" not in cluster.objects["FineTuneJob", JOB]["status"].get("cost", {})


@pytest.mark.parametrize(
    "is_with_suspend", [True, False], ids=["and stays suspended", "and is resumed at once"]
)
def test_cancelling_wins_over_a_suspension(*, is_with_suspend: bool) -> None:
    cluster = training()
    cluster.change("FineTuneJob", JOB, suspend=True)
    cluster.settle()
    assert "Suspended" in cluster.states("FineTuneJob", JOB)
    cluster.change("FineTuneJob", JOB, cancel=True, suspend=is_with_suspend)
    cluster.settle()

    assert is_cancelled(cluster)
    assert events(cluster, "Resumed", "Suspended", "Cancelled") == ["Suspended", "Cancelled"]
    assert unfinished_jobs(cluster) == []
    status = cluster.objects["FineTuneJob", JOB]["status"]
    assert status["cost"]["lost"] == [{"cause": "Cancelled", "deviceSeconds": 120.0}]


@pytest.mark.parametrize("passes", [1, 2, 9])
def test_removing_the_field_changes_nothing_once_it_was_seen(passes: int) -> None:
    cluster = training()
    cancel(cluster)
    for _ in range(passes):
        cluster.reconcile("FineTuneJob", JOB)
    cancel(cluster, value=False)
    cluster.settle()

    assert is_cancelled(cluster)
    assert unfinished_jobs(cluster) == []
    cluster.change("FineTuneJob", JOB, suspend=False)
    cluster.settle()
    assert is_cancelled(cluster)
    assert events(cluster, "CancelIgnored") == []


def test_an_operator_that_was_killed_after_it_recorded_the_end_finishes_it_without_the_field() -> None:
    cluster = training()
    cancel(cluster)
    plan = cluster.plan("FineTuneJob", JOB)
    assert plan.metadata is not None
    # The executor writes the metadata first; the status and everything after it is lost.
    cluster.objects["FineTuneJob", JOB]["metadata"]["annotations"] = plan.metadata["annotations"]
    cancel(cluster, value=False)
    cluster.settle()

    assert is_cancelled(cluster)
    assert unfinished_jobs(cluster) == []


def test_a_finished_run_keeps_its_end_and_says_once_that_cancelling_has_no_effect() -> None:
    cluster = ended()
    before = cluster.states("FineTuneJob", JOB)
    cancel(cluster)
    cluster.settle()
    cluster.settle()

    assert cluster.states("FineTuneJob", JOB) == before
    assert events(cluster, "CancelIgnored", "Cancelled") == ["CancelIgnored"]
    assert not annotation(cluster).endswith(".cancelled")
    assert cluster.states("Checkpoint", CHECKPOINT)["Promoted"] == "Promoted"


@pytest.mark.parametrize(
    ("cluster", "reason"),
    [
        pytest.param(MemoryCluster(*prerequisites(), finetunejob()), "DatasetNotFound", id="blocked"),
        pytest.param(
            MemoryCluster(*prerequisites(), dataset(), finetunejob(baseModel={"champion": {}})),
            "WaitingForChampion",
            id="waiting for a champion",
        ),
    ],
)
def test_a_run_that_waits_can_be_cancelled(cluster: MemoryCluster, reason: str) -> None:
    cluster.settle()
    assert cluster.states("FineTuneJob", JOB)["Reconciling"] == reason
    cancel(cluster)
    cluster.settle()
    assert is_cancelled(cluster)


def test_a_run_that_could_continue_after_its_time_limit_can_be_cancelled() -> None:
    cluster = reached("train", compute={"maxRunSeconds": 60})
    cluster.start("train")
    cluster.now += timedelta(seconds=61)
    cluster.settle()
    assert cluster.states("FineTuneJob", JOB)["Stalled"] == "MaxRunSecondsExceeded"
    cancel(cluster)
    cluster.settle()

    assert is_cancelled(cluster)
    cost = cluster.objects["FineTuneJob", JOB]["status"]["cost"]
    assert cost["lost"] == [{"cause": "Cancelled", "deviceSeconds": 61.0}]


def test_checkpoints_of_a_run_that_is_cancelled_in_its_evaluation_stay_and_their_training_is_not_lost() -> (
    None
):
    cluster = reached("evaluate")
    cluster.start("evaluate")
    cluster.now += timedelta(seconds=30)
    cancel(cluster)
    cluster.settle()

    assert is_cancelled(cluster)
    assert cluster.states("FineTuneJob", JOB)["Trained"] == "Succeeded"
    assert [each.name for each in cluster.job(JOB).status.checkpoints] == [CHECKPOINT]
    assert "deletionTimestamp" not in cluster.objects["Checkpoint", CHECKPOINT]["metadata"]
    lost = cluster.objects["FineTuneJob", JOB]["status"]["cost"]["lost"]
    assert lost == [{"cause": "Cancelled", "deviceSeconds": 30.0}]
    promoted = cluster.condition("Checkpoint", CHECKPOINT, "Promoted")
    assert promoted is not None
    assert (promoted["status"], promoted["reason"]) == ("False", "NotPromoted")

    cluster.change("Checkpoint", CHECKPOINT, approval={"state": "Approved"})
    cluster.settle()
    assert cluster.states("Checkpoint", CHECKPOINT)["Promoted"] == "Promoted"


def test_a_checkpoint_whose_gates_passed_is_not_promoted_after_its_run_was_cancelled() -> None:
    cluster = reached("evaluate")
    cluster.succeed("evaluate", evaluated(), after=10)
    cluster.reconcile("FineTuneJob", JOB)
    assert cluster.states("FineTuneJob", JOB)["Reconciling"] == "Promoting"
    cancel(cluster)
    cluster.reconcile("FineTuneJob", JOB)
    cluster.settle()

    assert is_cancelled(cluster)
    promoted = cluster.condition("Checkpoint", CHECKPOINT, "Promoted")
    assert promoted is not None
    assert promoted["reason"] == "NotPromoted"
    assert f"FineTuneJob {JOB} was cancelled" in promoted["message"]


def test_a_result_that_was_not_recorded_yet_is_lost_with_its_time() -> None:
    cluster = training()
    cluster.succeed("train", trained(), after=10)
    cancel(cluster)
    cluster.settle()

    assert is_cancelled(cluster)
    assert cluster.of("Checkpoint") == {}
    cost = cluster.objects["FineTuneJob", JOB]["status"]["cost"]
    assert cost["lost"] == [{"cause": "Cancelled", "deviceSeconds": 140.0}]


def test_the_children_of_a_cancelled_run_are_deleted_as_those_of_every_ended_run() -> None:
    cluster = training()
    cancel(cluster)
    cluster.settle()
    assert [job for job in cluster.of("Job") if job.startswith(JOB)]
    cluster.now += timedelta(days=2)
    cluster.settle()
    assert not [job for job in cluster.of("Job") if job.startswith(JOB)]


def restored(cluster: MemoryCluster, **spec: Any) -> MemoryCluster:
    """The run comes back from a backup without its status, with these fields in its spec."""
    run = saved(cluster.objects["FineTuneJob", JOB])
    cluster.remove("FineTuneJob", JOB)
    run["metadata"]["uid"] = NEW_UID
    run["spec"].pop("cancel", None)
    run["spec"].update(spec)
    cluster.add(run)
    cluster.settle()
    return cluster


@pytest.mark.parametrize("spec", [{}, {"cancel": True}], ids=["without the field", "with the field"])
def test_a_cancelled_run_that_is_restored_without_its_status_does_not_start_again(spec: Manifest) -> None:
    cluster = training()
    cancel(cluster)
    cluster.settle()
    restored(cluster, **spec)

    assert is_cancelled(cluster)
    assert unfinished_jobs(cluster) == []


def test_a_cancelled_run_that_is_restored_adopts_its_checkpoints_and_stays_cancelled() -> None:
    cluster = reached("evaluate")
    cancel(cluster)
    cluster.settle()
    restored(cluster)

    assert is_cancelled(cluster)
    assert cluster.states("FineTuneJob", JOB)["Trained"] == "Restored"
    assert [each.name for each in cluster.job(JOB).status.checkpoints] == [CHECKPOINT]
    assert unfinished_jobs(cluster) == []


def test_a_manifest_from_git_that_is_applied_again_does_not_start_a_cancelled_run() -> None:
    cluster = training()
    cancel(cluster)
    cluster.settle()
    run = cluster.objects["FineTuneJob", JOB]
    run["spec"] = finetunejob(compute={"devices": 2})["spec"]
    run["metadata"]["generation"] += 1
    cluster.settle()

    assert is_cancelled(cluster)
    assert unfinished_jobs(cluster) == []


def test_the_mark_of_a_cancelled_run_has_no_effect_on_another_spec_or_name() -> None:
    cluster = training()
    cancel(cluster)
    cluster.settle()
    other = saved(cluster.objects["FineTuneJob", JOB])
    other["metadata"] |= {"name": "tickets-v2", "uid": NEW_UID}
    other["spec"].pop("cancel")
    cluster.add(other)
    cluster.settle()

    assert "Stalled" not in cluster.states("FineTuneJob", "tickets-v2")
    assert any(name.startswith("tickets-v2") for name in cluster.of("Job"))


def test_a_restored_run_that_waits_for_its_checkpoints_can_be_cancelled() -> None:
    cluster, run, _ = wiped()
    cluster.add(run)
    cluster.settle()
    assert cluster.states("FineTuneJob", JOB) == {"Reconciling": "CheckpointNotFound"}
    recorded = annotation(cluster)
    cancel(cluster)
    cluster.settle()

    assert is_cancelled(cluster)
    assert annotation(cluster) == f"{recorded}.cancelled"


def test_a_run_that_had_ended_before_a_restore_stays_as_it_ended() -> None:
    cluster, run, checkpoint = wiped()
    cluster.add(checkpoint)
    run["spec"]["cancel"] = True
    cluster.add(run)
    cluster.settle()

    assert cluster.states("FineTuneJob", JOB) == {"Trained": "Restored", "Ready": "Restored"}


def test_cancel_is_not_part_of_the_identity_of_a_run() -> None:
    plain, cancelled = MemoryCluster(finetunejob()).job(JOB), MemoryCluster(finetunejob(cancel=True)).job(JOB)
    assert mark(plain) == mark(cancelled)


def test_a_cancelled_run_looks_nothing_up() -> None:
    cluster = MemoryCluster(*prerequisites(), dataset(), finetunejob(cancel=True))
    assert not KIND_ROWS["FineTuneJob"].needs(*cluster.snapshot("FineTuneJob", JOB))
