# SPDX-License-Identifier: Apache-2.0
"""A namespace that has used its budget of a ComputeProfile waits before stages with devices."""

from copy import deepcopy
from datetime import UTC, datetime, timedelta
from typing import Any

from finetune_client.local.cluster import at
from finetune_operator.plan import Key, Manifest
from finetune_operator.reconcile.scheduling import related
from tests.unit.operator.endpoints import EndpointCluster, checkpoint, serving_pod
from tests.unit.operator.evaluations import EVALUATION, evaluation, trained_cluster
from tests.unit.operator.memorycluster import NAMESPACE, MemoryCluster
from tests.unit.operator.runobjects import JOB, finetunejob, preflighted, profile, trained
from tests.unit.operator.runsteps import reached, started

PROFILE = "cpu"
HOURS = {"period": "Day", "deviceHoursPerNamespace": 2}
LIST = "kubectl get jobs -n team -l finetune.dev/profile=cpu,finetune.dev/devices"


def set_usage(cluster: MemoryCluster, namespace: str = NAMESPACE, **usage: Any) -> None:
    """Let a namespace have used something of the profile's budget, which begins again at midnight."""
    manifest = cluster.objects["ComputeProfile", PROFILE]
    manifest["status"]["budget"] = {
        "period": manifest["spec"]["cost"]["budget"]["period"],
        "since": "2030-01-02T00:00:00Z",
        "resetsAt": "2030-01-03T00:00:00Z",
        "usage": [{"namespace": namespace, "countedUntil": at(cluster.now), **usage}],
    }


def exhausted(stage: str = "preflight", **budget: Any) -> MemoryCluster:
    """A run in this stage whose namespace has used the budget."""
    cluster = started() if stage == "preflight" else reached(stage)
    cluster.change("ComputeProfile", PROFILE, cost={"budget": budget or HOURS})
    cluster.settle()
    set_usage(cluster, deviceSeconds=7260)
    return cluster


def waits(cluster: MemoryCluster) -> Manifest:
    condition = cluster.condition("FineTuneJob", JOB, "Reconciling")
    assert condition is not None
    assert condition["reason"] == "BudgetExhausted"
    return condition


def at_train(cluster: MemoryCluster) -> MemoryCluster:
    cluster.succeed("preflight", preflighted(), after=10)
    cluster.settle()
    return cluster


def test_a_run_waits_before_its_first_stage_with_devices_and_says_until_when() -> None:
    cluster = at_train(exhausted())
    assert not cluster.has_stage_job("train")
    message = waits(cluster)["message"]
    assert "namespace team has used its budget of ComputeProfile cpu: 2 device hours today" in message
    assert "The train stage starts after the reset at 2030-01-03T00:00:00Z" in message
    assert cluster.job(JOB).status.phase == "BudgetExhausted"
    assert [event.reason for event in cluster.events].count("BudgetExhausted") == 1
    before = cluster.objects["FineTuneJob", JOB]["status"]
    cluster.now += timedelta(hours=1)
    set_usage(cluster, deviceSeconds=36000)
    cluster.settle()
    assert cluster.objects["FineTuneJob", JOB]["status"] == before
    assert [event.reason for event in cluster.events].count("BudgetExhausted") == 1


def test_a_waiting_run_starts_at_the_reset_although_the_usage_is_not_reset_yet() -> None:
    cluster = at_train(exhausted())
    cluster.now += timedelta(hours=20, minutes=30)
    seconds = cluster.plan("FineTuneJob", JOB).requeue_after
    assert seconds is not None
    cluster.now += timedelta(seconds=seconds)
    cluster.reconcile("FineTuneJob", JOB)
    assert cluster.has_stage_job("train")


def test_a_waiting_run_starts_when_the_budget_is_raised_or_removed() -> None:
    for budget in ({**HOURS, "deviceHoursPerNamespace": 3}, None):
        cluster = at_train(exhausted())
        waits(cluster)
        cluster.change("ComputeProfile", PROFILE, cost={"budget": budget})
        cluster.settle()
        assert cluster.has_stage_job("train")


def waiting_runs(cluster: MemoryCluster, number: int) -> list[str]:
    """Runs of the namespace that wait for its budget before their train stage."""
    names = [f"run-{each}" for each in range(number)]
    for name in names:
        job = finetunejob()
        cluster.add({**job, "metadata": {"name": name}})
        cluster.settle()
        uid = cluster.objects["FineTuneJob", name]["metadata"]["uid"]
        cluster.succeed("preflight", preflighted().model_copy(update={"run": uid}), after=10)
        cluster.settle()
        assert cluster.states("FineTuneJob", name)["Reconciling"] == "BudgetExhausted"
    return names


def trains(cluster: MemoryCluster) -> list[str]:
    """The runs with an unfinished train Job."""
    labels = [
        job["metadata"]["labels"] for job in cluster.of("Job").values() if "conditions" not in job["status"]
    ]
    return [each["finetune.dev/owner-name"] for each in labels if each["finetune.dev/stage"] == "train"]


def test_after_the_reset_as_many_runs_start_as_the_budget_covers_for_an_hour() -> None:
    cluster = exhausted()
    cluster.remove("FineTuneJob", JOB)
    names = waiting_runs(cluster, 4)
    cluster.now += timedelta(hours=21)
    cluster.settle()
    assert trains(cluster) == names[:2]
    message = cluster.condition("FineTuneJob", names[2], "Reconciling")
    assert message is not None
    assert message["message"].startswith(
        f"other Jobs of namespace team reserve 1 h per device ({LIST}), which alone uses up its budget of"
        " ComputeProfile cpu: 2 device hours today. The train stage starts when enough of them have ended or"
        " have waited for more than 1 h, or after the reset at 2030-01-04T00:00:00Z. "
    )
    cluster.now += timedelta(minutes=5)
    before = cluster.objects["FineTuneJob", names[2]]["status"]
    cluster.settle()
    assert cluster.objects["FineTuneJob", names[2]]["status"] == before
    first = next(name for name in cluster.of("Job") if name.startswith(f"{names[0]}-train"))
    job = cluster.objects["Job", first]
    ended = {**job, "status": {"conditions": [{"type": "Failed", "status": "True"}]}}
    keys = [Key("FineTuneJob", NAMESPACE, name) for name in names]
    assert related("Job", job, ended, cluster.reader()) == {keys[0], keys[2]}
    assert related("Job", ended, None, cluster.reader()) == {keys[0]}
    cluster.objects["Job", first] = ended
    waiting = deepcopy(cluster.objects["FineTuneJob", names[2]])
    cluster.reconcile("FineTuneJob", names[2])
    started = cluster.objects["FineTuneJob", names[2]]
    assert keys[3] in related("FineTuneJob", waiting, started, cluster.reader())
    cluster.reconcile("FineTuneJob", names[3])
    assert trains(cluster) == names[1:3]


def other_job(cluster: MemoryCluster, number: int, *, devices: int = 1, **status: Any) -> None:
    """A Job of another run of the namespace, created now."""
    owner = {"kind": "FineTuneJob", "name": f"other-{number}", "uid": f"uid-{number}", "controller": True}
    metadata = {
        "name": f"job-{number}",
        "labels": {"finetune.dev/profile": PROFILE, "finetune.dev/devices": str(devices)},
        "ownerReferences": [owner],
    }
    cluster.add({"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": {}, "status": status})


def with_other_jobs(number: int, *, used: int = 0, ready: int = 0, devices: int = 1) -> MemoryCluster:
    """A run that is to train in a namespace with a budget of 2 device hours and Jobs of other runs."""
    cluster = exhausted()
    set_usage(cluster, deviceSeconds=used)
    for each in range(number):
        other_job(cluster, each, devices=devices, ready=ready)
    return at_train(cluster)


def test_a_job_without_a_running_pod_reserves_for_an_hour_only() -> None:
    cluster = with_other_jobs(1, devices=8)
    waits(cluster)
    seconds = cluster.plan("FineTuneJob", JOB).requeue_after
    assert seconds is not None
    assert seconds < 3600
    cluster.now += timedelta(seconds=seconds)
    cluster.reconcile("FineTuneJob", JOB)
    assert cluster.has_stage_job("train")


def test_a_job_whose_pod_runs_reserves_until_it_ends() -> None:
    cluster = with_other_jobs(1, devices=8, ready=1)
    cluster.now += timedelta(hours=3)
    cluster.reconcile("FineTuneJob", JOB)
    assert not cluster.has_stage_job("train")
    cluster.remove("Job", "job-0")
    cluster.reconcile("FineTuneJob", JOB)
    assert cluster.has_stage_job("train")


def test_the_message_says_how_to_list_the_jobs_and_promises_the_reset_only_if_it_suffices() -> None:
    message = waits(with_other_jobs(5, ready=1))["message"]
    assert f"({LIST}), which alone" in message
    assert "starts when enough of them have ended or have waited for more than 1 h. To start" in message
    message = waits(with_other_jobs(5))["message"]
    assert "more than 1 h, or after the reset at 2030-01-03T00:00:00Z. To start" in message
    message = waits(with_other_jobs(1, used=3600, ready=1))["message"]
    assert f"({LIST}), which uses up the rest of its budget" in message
    assert "or after the reset at 2030-01-03T00:00:00Z. To start" in message


def crowd() -> tuple[MemoryCluster, list[str]]:
    """Twelve runs that wait until the Jobs of ten others leave room, the oldest first."""
    cluster = exhausted()
    cluster.remove("FineTuneJob", JOB)
    names = waiting_runs(cluster, 12)
    set_usage(cluster, deviceSeconds=0)
    for number in range(10):
        other_job(cluster, number, ready=1)
    cluster.settle()
    return cluster, names


def test_the_end_of_a_job_wakes_the_oldest_waiting_run_and_writes_no_status() -> None:
    cluster, names = crowd()
    before = deepcopy({name: cluster.objects["FineTuneJob", name]["status"] for name in names})
    for number in range(8):
        ended = cluster.objects["Job", f"job-{number}"]
        cluster.remove("Job", f"job-{number}")
        woken = related("Job", ended, None, cluster.reader())
        assert woken == {
            Key("FineTuneJob", NAMESPACE, f"other-{number}"),
            Key("FineTuneJob", NAMESPACE, names[0]),
        }
        cluster.settle()
    assert {name: cluster.objects["FineTuneJob", name]["status"] for name in names} == before


def test_freed_devices_start_the_oldest_runs_one_by_one_and_no_other_run_is_passed() -> None:
    cluster, names = crowd()
    jobs = [cluster.objects["Job", f"job-{number}"] for number in range(10)]
    for job in jobs:
        cluster.remove("Job", job["metadata"]["name"])
    queue = set[Key]().union(*(related("Job", job, None, cluster.reader()) for job in jobs))
    passed = list[str]()
    while due := [key for key in queue if key.name in names]:
        (key,) = due
        queue = set()
        before = deepcopy(cluster.objects[key.kind, key.name])
        cluster.reconcile(key.kind, key.name)
        passed.append(key.name)
        changed = cluster.objects[key.kind, key.name]
        if changed != before:
            queue = {each for each in related(key.kind, before, changed, cluster.reader()) if each != key}
    # The third finds no room, and waits on.
    assert passed == names[:3]
    assert trains(cluster) == names[:2]


def test_a_run_that_leaves_the_line_without_a_start_wakes_the_next_one() -> None:
    cluster, names = crowd()
    first = cluster.objects["FineTuneJob", names[0]]
    next_one = Key("FineTuneJob", NAMESPACE, names[1])
    cluster.remove("FineTuneJob", names[0])
    assert next_one in related("FineTuneJob", first, None, cluster.reader())
    second = deepcopy(cluster.objects["FineTuneJob", names[1]])
    cluster.change("FineTuneJob", names[1], suspend=True)
    cluster.reconcile("FineTuneJob", names[1])
    changed = cluster.objects["FineTuneJob", names[1]]
    assert Key("FineTuneJob", NAMESPACE, names[2]) in related(
        "FineTuneJob", second, changed, cluster.reader()
    )


def test_only_the_first_run_checks_at_the_reset_and_the_others_later() -> None:
    cluster, names = crowd()
    cluster.now += timedelta(hours=20, minutes=30)
    set_usage(cluster, deviceSeconds=0)
    seconds = [cluster.plan("FineTuneJob", name).requeue_after or 0.0 for name in names]
    reset = (datetime(2030, 1, 3, tzinfo=UTC) - cluster.now).total_seconds()
    assert seconds[0] == reset + 1
    assert set(seconds[1:]) == {reset + 60}


def test_a_run_waits_in_the_line_of_the_profile_of_its_next_stage() -> None:
    cluster = exhausted("train", **HOURS)
    cluster.add(profile("judged", default=False, cost={"budget": HOURS}))
    job = cluster.objects["FineTuneJob", JOB]
    condition = {"type": "Reconciling", "status": "True", "reason": "BudgetExhausted"}
    job["spec"]["evaluation"]["profile"] = "judged"
    job["status"]["conditions"] = [condition]
    reader, key = cluster.reader(), Key("FineTuneJob", NAMESPACE, JOB)
    assert (reader.first_in_line(NAMESPACE, PROFILE), reader.first_in_line(NAMESPACE, "judged")) == (
        key,
        None,
    )
    trained_at = {"type": "Trained", "status": "True", "lastTransitionTime": at(cluster.now)}
    job["status"]["conditions"] = [condition, trained_at]
    reader = cluster.reader()
    assert (reader.first_in_line(NAMESPACE, PROFILE), reader.first_in_line(NAMESPACE, "judged")) == (
        None,
        key,
    )


def test_a_used_budget_is_said_to_start_after_the_reset_or_when_jobs_have_ended_then() -> None:
    message = waits(with_other_jobs(2, used=7260, ready=1))["message"]
    assert "team has used its budget" in message
    assert (
        f"starts after the reset at 2030-01-03T00:00:00Z, when enough of its Jobs ({LIST}) have ended."
        " To start"
    ) in message
    message = waits(with_other_jobs(2, used=7260))["message"]
    assert "starts after the reset at 2030-01-03T00:00:00Z. To start" in message


def uncounted(cluster: MemoryCluster) -> str:
    """The message of a run that waits because its use is not counted."""
    assert not cluster.has_stage_job("train")
    condition = cluster.condition("FineTuneJob", JOB, "Reconciling")
    assert condition is not None
    assert condition["reason"] == "BudgetNotCounted"
    message: str = condition["message"]
    return message


def test_nothing_starts_before_the_use_of_a_profile_with_a_budget_has_been_counted() -> None:
    cluster = exhausted()
    profile = cluster.objects["ComputeProfile", PROFILE]
    counted = profile["status"].pop("budget")
    cluster.succeed("preflight", preflighted(), after=10)
    cluster.reconcile("FineTuneJob", JOB)
    cluster.reconcile("FineTuneJob", JOB)
    assert "namespace team is not counted at the moment" in uncounted(cluster)
    seconds = cluster.plan("FineTuneJob", JOB).requeue_after
    assert seconds is not None
    assert seconds <= 60
    after = {**profile, "status": {**profile["status"], "budget": {**counted, "usage": []}}}
    assert related("ComputeProfile", profile, after, cluster.reader()) == {Key("FineTuneJob", NAMESPACE, JOB)}
    cluster.objects["ComputeProfile", PROFILE] = after
    cluster.reconcile("FineTuneJob", JOB)
    assert cluster.has_stage_job("train")


def test_nothing_starts_while_the_use_of_a_running_job_is_not_counted_any_more() -> None:
    cluster = with_other_jobs(1, devices=1, ready=1)
    assert cluster.has_stage_job("train")
    cluster = exhausted()
    set_usage(cluster, deviceSeconds=0)
    other_job(cluster, 0, ready=1)
    cluster.now += timedelta(minutes=20)
    cluster.succeed("preflight", preflighted(), after=10)
    cluster.reconcile("FineTuneJob", JOB)
    cluster.reconcile("FineTuneJob", JOB)
    uncounted(cluster)
    set_usage(cluster, deviceSeconds=1200)
    cluster.reconcile("FineTuneJob", JOB)
    assert cluster.has_stage_job("train")


def test_passes_of_runs_that_wait_for_a_budget_do_not_overlap() -> None:
    cluster = exhausted()
    key = Key("FineTuneJob", NAMESPACE, JOB)
    assert cluster.reader().lock(key) is None
    at_train(cluster)
    (other,) = waiting_runs(cluster, 1)
    locks = {cluster.reader().lock(each) for each in (key, Key("FineTuneJob", NAMESPACE, other))}
    assert len(locks) == 1
    assert None not in locks


def test_the_jobs_of_the_run_itself_and_of_other_profiles_reserve_nothing() -> None:
    cluster = exhausted(deviceHoursPerNamespace=0.5, period="Day")
    set_usage(cluster, deviceSeconds=0)
    for named, owner in ((PROFILE, cluster.job(JOB).uid), ("large", "another")):
        labels = {"finetune.dev/profile": named, "finetune.dev/devices": "8"}
        owners = [{"kind": "FineTuneJob", "name": JOB, "uid": owner, "controller": True}]
        metadata = {"name": f"job-{named}", "labels": labels, "ownerReferences": owners}
        cluster.add({"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": {}})
    cluster.succeed("preflight", preflighted(), after=10)
    cluster.reconcile("FineTuneJob", JOB)
    assert cluster.has_stage_job("train")


def test_a_budget_of_cost_is_compared_with_the_cost() -> None:
    cluster = started()
    cost = {"period": "Month", "costPerNamespace": 300}
    priced = {"budget": cost, "pricePerDeviceHour": 2.0, "currency": "EUR"}
    cluster.change("ComputeProfile", PROFILE, cost=priced)
    cluster.settle()
    set_usage(cluster, deviceSeconds=10**6, cost=312.5)
    assert "cpu: 300 EUR this month" in waits(at_train(cluster))["message"]


def test_the_budget_of_another_namespace_stops_nothing() -> None:
    cluster = exhausted()
    set_usage(cluster, "other", deviceSeconds=10**6)
    at_train(cluster)
    assert cluster.has_stage_job("train")


def test_what_runs_continues_and_the_next_stage_with_devices_waits() -> None:
    cluster = exhausted("train")
    cluster.start("train")
    cluster.settle()
    assert cluster.states("FineTuneJob", JOB)["Reconciling"] == "Training"
    cluster.succeed("train", trained(), after=60)
    cluster.settle()
    assert waits(cluster)["message"].count("The evaluate stage starts after the reset") == 1


def test_a_suspended_run_waits_when_it_is_resumed() -> None:
    cluster = exhausted("train")
    cluster.start("train")
    for suspend in (True, False):
        cluster.change("FineTuneJob", JOB, suspend=suspend)
        cluster.settle()
    waits(cluster)


def test_an_evaluation_waits_before_it_measures_and_keeps_no_profile_before_that() -> None:
    cluster = trained_cluster()
    cluster.change("ComputeProfile", PROFILE, cost={"budget": HOURS})
    cluster.settle()
    set_usage(cluster, deviceSeconds=7260)
    cluster.add(evaluation())
    cluster.settle()
    assert cluster.states("Evaluation", EVALUATION)["Reconciling"] == "BudgetExhausted"
    assert "resolved" not in cluster.objects["Evaluation", EVALUATION]["status"] or (
        "profile" not in cluster.objects["Evaluation", EVALUATION]["status"]["resolved"]
    )
    cluster.change("ComputeProfile", PROFILE, cost={"budget": None})
    cluster.settle()
    assert cluster.states("Evaluation", EVALUATION)["Reconciling"] == "Queued"


def test_pods_of_runs_are_counted_and_a_deleted_run_takes_nothing_away() -> None:
    cluster = reached("train", compute={"devices": 2})
    cluster.change("ComputeProfile", PROFILE, cost={"budget": HOURS})
    cluster.settle()
    cluster.start("train", after=60)
    cluster.settle()
    cluster.now += timedelta(seconds=400)
    cluster.settle()
    (usage,) = cluster.objects["ComputeProfile", PROFILE]["status"]["budget"]["usage"]
    assert usage["deviceSeconds"] == 2 * (400 - 10)
    cluster.remove("FineTuneJob", JOB)
    cluster.settle()
    assert cluster.objects["ComputeProfile", PROFILE]["status"]["budget"]["usage"] == [usage]


def test_an_endpoint_uses_the_budget_and_starts_and_serves_whatever_is_left_of_it() -> None:
    desk = EndpointCluster(checkpoint("first", "1"))
    desk.cluster.change("ComputeProfile", "standard", cost={"budget": HOURS})
    desk.cluster.reconcile("ComputeProfile", "standard")
    desk.settle()
    (first,) = desk.deployments
    desk.make_ready(first)
    running = {"name": "engine", "state": {"running": {"startedAt": at(desk.cluster.now)}}}
    pod = serving_pod(first, phase="Running", containerStatuses=[running])
    pod["spec"]["containers"] = [{"name": "engine", "resources": {"limits": {"nvidia.com/gpu": "2"}}}]
    desk.put(pod)
    desk.cluster.now += timedelta(hours=2)
    desk.cluster.reconcile("ComputeProfile", "standard")
    (usage,) = desk.cluster.objects["ComputeProfile", "standard"]["status"]["budget"]["usage"]
    assert usage["deviceSeconds"] == 2 * (7200 - 10) > 2 * 3600
    desk.put(checkpoint("second", "2", promoted=10))
    desk.settle()
    assert {each["spec"]["replicas"] for each in desk.deployments.values()} == {1}
    assert len(desk.deployments) == 2


def test_the_namespaces_that_are_free_again_wake_their_waiting_runs_and_no_other_change_does() -> None:
    cluster = at_train(exhausted())
    before = cluster.objects["ComputeProfile", PROFILE]
    key = Key("FineTuneJob", NAMESPACE, JOB)

    def woken(**budget: Any) -> frozenset[Key]:
        status = {**before["status"], "budget": {**before["status"]["budget"], **budget}}
        return related("ComputeProfile", before, {**before, "status": status}, cluster.reader())

    assert woken(usage=[]) == {key}
    (entry,) = before["status"]["budget"]["usage"]
    assert woken(usage=[{**entry, "deviceSeconds": 9000}]) == frozenset()
    assert woken(usage=[entry, {**entry, "namespace": "other"}]) == frozenset()


def test_a_run_is_woken_by_the_profile_that_was_the_default_when_it_started() -> None:
    cluster = at_train(exhausted())
    profile = cluster.objects["ComputeProfile", PROFILE]
    no_default = {**profile, "metadata": {**profile["metadata"], "annotations": {}}}
    cluster.objects["ComputeProfile", PROFILE] = no_default
    raised = {
        **no_default,
        "spec": {**no_default["spec"], "cost": {"budget": {**HOURS, "deviceHoursPerNamespace": 9}}},
    }
    woken = related("ComputeProfile", no_default, raised, cluster.reader())
    assert Key("FineTuneJob", NAMESPACE, JOB) in woken


def test_a_pod_wakes_the_profile_with_a_budget_when_it_starts_ends_or_is_deleted() -> None:
    cluster = reached("train")
    cluster.start("train")
    pod = next(pod for name, pod in cluster.of("Pod").items() if "-train-" in name)
    waiting = {**pod, "status": {"phase": "Pending"}}
    ready = {**pod, "status": {**pod["status"], "conditions": [{"type": "Ready", "status": "True"}]}}
    finished = {"startedAt": at(cluster.now), "finishedAt": at(cluster.now), "exitCode": 0}
    ended = {
        **pod,
        "status": {
            "phase": "Succeeded",
            "containerStatuses": [{"name": "trainer", "state": {"terminated": finished}}],
        },
    }
    key = Key("ComputeProfile", "", PROFILE)
    changes = ((waiting, pod, True), (pod, ready, False), (pod, ended, True), (ended, None, False))
    for old, new, _ in changes:
        assert key not in related("Pod", old, new, cluster.reader())
    cluster.change("ComputeProfile", PROFILE, cost={"budget": HOURS})
    for old, new, wakes in (*changes, (pod, None, True)):
        keys = related("Pod", old, new, cluster.reader())
        assert (key in keys) == wakes
        assert Key("FineTuneJob", NAMESPACE, JOB) in keys
