# SPDX-License-Identifier: Apache-2.0
"""Two runs need the same GPU: one waits with a message, and trains when the other has ended."""

import json
from collections.abc import Iterator

import pytest

from finetune_client.backend import Object
from tests.e2e import manifests, pods
from tests.e2e.manifests import GPU
from tests.e2e.team import PATIENCE_SECONDS, PAUSE_SECONDS, Team, condition_of, is_running, uid_of
from tests.waiting import eventually
from tools.cluster.node import GPU_RESOURCE
from tools.images.tags import References

RESOURCE = GPU_RESOURCE
RUNS = ("eager", "patient")


@pytest.fixture
def one_gpu_left(team: Team, refs: References) -> Iterator[None]:
    """Hold all GPUs of the cluster except one."""
    nodes = json.loads(team.kubectl("get", "nodes", "--output=json"))["items"]
    count = sum(int(node["status"]["allocatable"].get(RESOURCE, 0)) for node in nodes)
    assert count > 1, f"the cluster needs two {RESOURCE}, it has {count}"
    team.apply(pods.holder_of(RESOURCE, count - 1, refs.operator))
    team.kubectl("wait", "--for=condition=Ready", "pod/holder", "--timeout=120s")
    yield
    team.kubectl("delete", "pod", "holder", "--now")


def waiting(team: Team) -> str | None:
    """The run whose condition says that no node has a free GPU."""
    for name in RUNS:
        condition = condition_of(team.get("FineTuneJob", name), "Reconciling")
        if condition.get("reason") == "Unschedulable" and f"Insufficient {RESOURCE}" in condition["message"]:
            return name
    return None


def test_a_run_waits_for_a_gpu_with_the_reason_shown_and_then_trains(
    team: Team, tickets: Object, one_gpu_left: None
) -> None:
    team.apply(
        *(
            manifests.finetunejob(name, compute={"profile": GPU}, hyperparameters=manifests.LONG)
            for name in RUNS
        )
    )
    late = eventually(
        "a run waits for a GPU",
        lambda: waiting(team),
        PATIENCE_SECONDS,
        describe=lambda: "\n".join(team.describe("FineTuneJob", name) for name in RUNS),
        pause=PAUSE_SECONDS,
    )
    run = team.get("FineTuneJob", late)
    assert not any(is_running(pod) for pod in team.children("pods", uid_of(run), "train"))
    (early,) = (name for name in RUNS if name != late)

    first = team.until("FineTuneJob", early, "Ready")
    second = team.until("FineTuneJob", late, "Ready")

    queued = {
        name: stage["queuedSeconds"]
        for name, each in ((early, first), (late, second))
        for stage in each["status"]["stages"]
        if stage["name"] == "train"
    }
    assert queued[late] > queued[early]
