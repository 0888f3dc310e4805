# SPDX-License-Identifier: Apache-2.0
"""Runs that are interrupted during training. They run concurrently, because they mostly wait."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

import pytest

from finetune_client.backend import Object
from tests.e2e import manifests, pods
from tests.e2e.sessions import selected
from tests.e2e.team import (
    PATIENCE_SECONDS,
    PAUSE_SECONDS,
    Team,
    condition_of,
    exit_code,
    name_of,
    uid_of,
)
from tests.waiting import eventually
from tools.demo.install import RELEASE, SYSTEM

RESUMED: Final = "resuming after step"
SAVED: Final = "saved the state after step"
STEPS: Final = 240
LONGER: Final = {**manifests.LONG, "epochs": 200}
WITH_DROPOUT: Final = {"type": "LoRA", "lora": {"r": 8, "alpha": 16, "dropout": 0.1}}

Story = Callable[[Team, Team], None]


@pytest.fixture(scope="module")
def told(
    request: pytest.FixtureRequest, team: Team, node: Team, tickets: Object
) -> Iterator[Mapping[str, Future[None]]]:
    """All selected stories, each in its own thread."""
    names = selected(request, "story")
    pool = ThreadPoolExecutor(len(STORIES))
    yield {each.__name__: pool.submit(each, team, node) for each in STORIES if each.__name__ in names}
    # After Ctrl-C some stories still wait; they fail when their namespace is deleted.
    pool.shutdown(wait=False)


def until_saved(team: Team, name: str, **spec: object) -> tuple[Object, Object]:
    """Wait until a train pod of the run has saved a state and has steps left; returns run and pod."""
    team.apply(
        manifests.finetunejob(
            name, hyperparameters=manifests.LONG, checkpoints=manifests.SAVED, **spec
        )
    )  # fmt: skip
    run = team.get("FineTuneJob", name)
    pod = team.pod(uid_of(run), "train")
    team.until_logged(pod, SAVED)
    return run, pod


def step_in(line: str, after: str) -> int:
    """The number after this text in a log line."""
    return int(line.partition(after)[2].split()[0])


def train_job(team: Team, run: Object) -> str:
    """The uid of the run's only train Job."""
    (job,) = team.children("jobs", uid_of(run), "train")
    return uid_of(job)


def assert_complete(team: Team, name: str) -> Object:
    """Wait until the run is complete, and check that it trained every step and has one Checkpoint."""
    ended = team.until("FineTuneJob", name, "Ready", "Promoted")
    (checkpoint,) = (each for each in ended["status"]["checkpoints"] if each.get("final"))
    assert checkpoint["step"] == STEPS
    return ended


def a_pod_that_is_deleted_and_one_that_is_killed_are_followed_by_one_that_goes_on(
    team: Team, node: Team
) -> None:
    run, first = until_saved(team, "killed")
    job = train_job(team, run)

    team.kubectl("delete", "pod", name_of(first), "--wait=false")
    second = team.pod(uid_of(run), "train", other_than=(name_of(first),))
    resumed_at = step_in(team.until_logged(second, RESUMED), RESUMED)
    assert 0 < resumed_at < STEPS
    saved_at = step_in(team.until_logged(second, SAVED), SAVED)
    assert saved_at > resumed_at

    assert "killed" in node.kubectl("exec", "killer", "--", "python3", "-c", pods.KILL, uid_of(second))
    third = team.pod(uid_of(run), "train", other_than=(name_of(first), name_of(second)))
    assert exit_code(get_pod(team, name_of(second))) == 137
    assert saved_at <= step_in(team.until_logged(third, RESUMED), RESUMED) < STEPS

    ended = assert_complete(team, "killed")
    assert "2 restarts" in condition_of(ended, "Trained")["message"]
    assert train_job(team, run) == job


def a_run_that_everything_happens_to_ends_with_the_weights_of_one_that_is_left_alone(
    team: Team, node: Team
) -> None:
    spec = {"method": WITH_DROPOUT, "hyperparameters": LONGER, "checkpoints": manifests.SAVED}
    team.apply(manifests.finetunejob("calm", **spec), manifests.finetunejob("unlucky", **spec))
    run = team.get("FineTuneJob", "unlucky")
    uid, seen = uid_of(run), list[str]()

    def next_pod() -> Object:
        pod = team.pod(uid, "train", other_than=tuple(seen))
        if seen:
            team.until_logged(pod, RESUMED)
        team.until_logged(pod, SAVED)
        seen.append(name_of(pod))
        return pod

    killed = next_pod()
    job = train_job(team, run)
    node.kubectl("exec", "killer", "--", "python3", "-c", pods.KILL, uid_of(killed))
    team.evict(next_pod())
    next_pod()
    team.access.kubectl(
        "delete", "pods", f"--namespace={SYSTEM}", f"--selector=app.kubernetes.io/instance={RELEASE}",
        "--force", "--grace-period=0",
    )  # fmt: skip
    (same,) = team.children("jobs", uid, "train")
    assert uid_of(same) == job
    assert same["status"]["failed"] == 1, "the eviction was counted as a failure"
    team.patch("finetunejob", "unlucky", {"suspend": True})
    team.until("FineTuneJob", "unlucky", "Suspended")
    team.patch("finetunejob", "unlucky", {"suspend": False})
    next_pod()

    ended = team.until("FineTuneJob", "unlucky", "Ready", "Promoted")

    assert "3 restarts" in condition_of(ended, "Trained")["message"]
    calm = team.until("FineTuneJob", "calm", "Ready", "Promoted")
    assert "restarts" not in condition_of(calm, "Trained")["message"]
    assert digests(ended) == digests(calm)


def digests(run: Object) -> list[str]:
    return [each["digest"] for each in run["status"]["checkpoints"]]


def get_pod(team: Team, name: str) -> Object:
    (pod,) = (each for each in team.access.pods(team.namespace, "") if name_of(each) == name)
    return pod


def an_operator_that_is_killed_goes_on_where_it_was_and_trains_nothing_twice(team: Team, node: Team) -> None:
    run, pod = until_saved(team, "unattended")
    job = train_job(team, run)
    selector = f"app.kubernetes.io/instance={RELEASE}"
    before = {name_of(each) for each in team.access.pods(SYSTEM, selector)}
    team.access.kubectl("delete", "pods", *before, f"--namespace={SYSTEM}", "--force", "--grace-period=0")

    assert_complete(team, "unattended")

    assert train_job(team, run) == job
    assert [name_of(each) for each in team.children("pods", uid_of(run), "train")] == [name_of(pod)]
    assert before.isdisjoint(name_of(each) for each in team.access.pods(SYSTEM, selector))


def a_suspended_run_holds_no_device_and_goes_on_when_it_is_resumed(team: Team, node: Team) -> None:
    run, _ = until_saved(team, "suspended")
    job = train_job(team, run)

    team.patch("finetunejob", "suspended", {"suspend": True})
    suspended = team.until("FineTuneJob", "suspended", "Suspended")
    assert [each["type"] for each in suspended["status"]["conditions"]] == [
        "DatasetReady", "Preflighted", "Suspended",
    ]  # fmt: skip
    assert team.children("jobs", uid_of(run), "train") == []
    assert team.children("pods", uid_of(run), "train") == []

    team.patch("finetunejob", "suspended", {"suspend": False})
    again = team.pod(uid_of(run), "train")
    assert 0 < step_in(team.until_logged(again, RESUMED), RESUMED) < STEPS
    ended = assert_complete(team, "suspended")
    assert train_job(team, run) != job
    (train,) = (stage for stage in ended["status"]["stages"] if stage["name"] == "train")
    used = suspended["status"]["usage"]["deviceSeconds"]
    assert train["deviceSeconds"] > used > 0


def a_run_that_is_deleted_takes_its_pods_with_it_and_leaves_its_records(team: Team, node: Team) -> None:
    run, _ = until_saved(team, "deleted", dataset=manifests.own_rows("tickets"))
    version = team.get("FineTuneJob", "deleted")["status"]["resolved"]["datasetVersion"]

    team.kubectl("delete", "finetunejob", "deleted", "--wait=false")

    eventually(
        "the run is gone",
        lambda: team.access.object("FineTuneJob", team.namespace, "deleted") is None,
        PATIENCE_SECONDS,
        pause=PAUSE_SECONDS,
    )
    for kind in ("pods", "jobs", "services", "configmaps", "secrets"):
        team.until_gone(kind, uid_of(run))
    assert "ownerReferences" not in team.get("DatasetVersion", version)["metadata"]


STORIES: Final[tuple[Story, ...]] = (
    a_pod_that_is_deleted_and_one_that_is_killed_are_followed_by_one_that_goes_on,
    a_suspended_run_holds_no_device_and_goes_on_when_it_is_resumed,
    an_operator_that_is_killed_goes_on_where_it_was_and_trains_nothing_twice,
    a_run_that_is_deleted_takes_its_pods_with_it_and_leaves_its_records,
    a_run_that_everything_happens_to_ends_with_the_weights_of_one_that_is_left_alone,
)


COMBINED: Final = (
    a_pod_that_is_deleted_and_one_that_is_killed_are_followed_by_one_that_goes_on,
    an_operator_that_is_killed_goes_on_where_it_was_and_trains_nothing_twice,
)
"""Stories whose faults the run that everything happens to has too."""


@pytest.mark.parametrize(
    "story",
    [pytest.param(story.__name__, marks=pytest.mark.full if story in COMBINED else ()) for story in STORIES],
)
def test_interrupted_training(told: Mapping[str, Future[None]], story: str) -> None:
    told[story].result()
