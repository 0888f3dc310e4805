# SPDX-License-Identifier: Apache-2.0
"""Reports are optional: the chain completes without them."""

import json
from collections.abc import Iterator

import pytest

from finetune_client.backend import Object
from tests.e2e import manifests
from tests.e2e.team import Team, condition_of, uid_of
from tools.demo.install import RELEASE, SYSTEM

SERVICE = f"{RELEASE}-report"


@pytest.fixture
def unreachable_operator(team: Team) -> Iterator[None]:
    """Delete the Service that pods report to, without the operator's knowledge."""
    scope = f"--namespace={SYSTEM}"
    service = json.loads(team.access.kubectl("get", "service", SERVICE, scope, "--output=json"))
    team.access.kubectl("delete", "service", SERVICE, scope)
    yield
    kept = {key: service["metadata"][key] for key in ("name", "namespace", "labels", "annotations")}
    again = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": kept,
        "spec": {"ports": service["spec"]["ports"]},
    }
    team.access.kubectl("apply", "--server-side", "--filename=-", text=json.dumps(again))


def test_a_run_completes_while_no_report_reaches_the_operator(
    team: Team, tickets: Object, unreachable_operator: None
) -> None:
    team.apply(manifests.finetunejob("unheard"))
    run = team.until("FineTuneJob", "unheard", "Ready", "Promoted")
    (pod,) = team.children("pods", uid_of(run), "train")
    assert "progress does not reach the operator" in team.log(pod)
    assert condition_of(run, "Trained")["status"] == "True"
    assert run["status"]["checkpoints"]
    stages = {stage["name"]: stage for stage in run["status"]["stages"]}
    assert stages["train"]["deviceSeconds"] > 0
