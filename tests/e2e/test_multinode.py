# SPDX-License-Identifier: Apache-2.0
"""Runs in two pods: they find each other by name, and go on together when one of them is killed.

One after the other: two runs that each hold one pod and have no room for their second would wait for ever.
"""

from typing import Final

import pytest

from finetune_client.backend import Object
from finetune_operator.observe.pod_status import index_of
from finetune_trainer.contract.vocabulary import ExitCode
from tests.e2e import manifests, pods
from tests.e2e.pods import Keeper
from tests.e2e.team import (
    PATIENCE_SECONDS,
    PAUSE_SECONDS,
    Team,
    exit_code,
    is_running,
    name_of,
    uid_of,
)
from tests.waiting import eventually

RESUMED: Final = "resuming after step"
SAVED: Final = "saved the state after step"
IN_TWO_PODS: Final = {"compute": {"profile": manifests.CPU, "nodes": 2}}


def begin(team: Team, keeper: Keeper, request: pytest.FixtureRequest) -> None:
    """Create a run that is not disturbed."""
    start(team, "pair")


@pytest.fixture(scope="module")
def undisturbed(team: Team, begun: None) -> Object:
    """The undisturbed run when it is complete."""
    return team.until("FineTuneJob", "pair", "Ready", "Promoted")


def start(team: Team, name: str, **spec: object) -> None:
    """A run; two runs differ only in their names."""
    fields = {**IN_TWO_PODS, "hyperparameters": manifests.LONG, "checkpoints": manifests.SAVED, **spec}
    team.apply(manifests.finetunejob(name, **fields))


def final_digest(run: Object) -> str:
    digest: str = next(each["digest"] for each in run["status"]["checkpoints"] if each.get("final"))
    return digest


def train_pods(team: Team, uid: str, other_than: tuple[str, ...] = ()) -> dict[int, Object]:
    """Wait until both pods of a run run; returns them by index."""

    def both() -> dict[int, Object] | None:
        found = {
            index_of(pod): pod
            for pod in team.children("pods", uid, "train")
            if name_of(pod) not in other_than and is_running(pod)
        }
        return {0: found[0], 1: found[1]} if found.keys() == {0, 1} else None

    return eventually(
        f"two train pods run, other than {other_than}", both, PATIENCE_SECONDS, pause=PAUSE_SECONDS
    )


def train_job(team: Team, uid: str) -> Object:
    """The run's only train Job."""
    (job,) = team.children("jobs", uid, "train")
    return job


def test_two_pods_train_one_checkpoint_and_the_time_of_both_is_counted(
    team: Team, undisturbed: Object
) -> None:
    assert train_job(team, uid_of(undisturbed))["spec"]["completions"] == 2
    (train,) = (stage for stage in undisturbed["status"]["stages"] if stage["name"] == "train")
    assert train["seconds"] < train["deviceSeconds"] <= 2 * train["seconds"]


def test_when_one_pod_is_killed_both_go_on_from_the_saved_state_to_the_same_weights(
    team: Team, node: Team, undisturbed: Object
) -> None:
    """First kill the pod with the rendezvous, then the other one."""
    start(team, "widowed")
    run = team.get("FineTuneJob", "widowed")
    uid = uid_of(run)
    before = train_pods(team, uid)
    job = uid_of(train_job(team, uid))
    gone: tuple[str, ...] = ()
    for killed, survivor in ((0, 1), (1, 0)):
        team.until_logged(before[0], SAVED)
        said = node.kubectl("exec", "killer", "--", "python3", "-c", pods.KILL, uid_of(before[killed]))
        assert "killed" in said
        gone = (*gone, *(name_of(pod) for pod in before.values()))
        after = train_pods(team, uid, other_than=gone)
        ends = {name_of(pod): exit_code(pod) for pod in team.children("pods", uid, "train")}
        assert ends[name_of(before[survivor])] == ExitCode.PEER_LOST
        team.until_logged(after[0], RESUMED)
        before = after

    ended = team.until("FineTuneJob", "widowed", "Ready", "Promoted")

    assert final_digest(ended) == final_digest(undisturbed)
    finished = train_job(team, uid)
    assert uid_of(finished) == job
    assert finished["status"].get("failed", 0) <= 2, "a pod that lost another one was counted as a failure"


@pytest.mark.full
def test_all_weights_are_trained_in_two_pods_too(team: Team, undisturbed: Object) -> None:
    start(team, "whole-pair", method={"type": "Full"}, hyperparameters={"epochs": 5, "learningRate": 0.003})
    run = team.until("FineTuneJob", "whole-pair", "Ready", "Promoted")
    (checkpoint,) = (each for each in run["status"]["checkpoints"] if each.get("final"))
    assert team.get("Checkpoint", checkpoint["name"])["spec"]["type"] == "Full"


def test_the_service_that_named_the_pods_goes_with_the_finished_jobs(team: Team, undisturbed: Object) -> None:
    uid = uid_of(undisturbed)
    (service,) = team.children("services", uid)
    assert service["spec"]["clusterIP"] == "None"
    team.patch("finetunejob", "pair", {"childrenTTLSeconds": 0})
    for kind in ("pods", "jobs", "services"):
        team.until_gone(kind, uid)
