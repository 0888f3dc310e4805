# SPDX-License-Identifier: Apache-2.0
"""The verbs of decisions against a real API server: with the operator, without a right, and with Git."""

import itertools
import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from finetune_client.errors import ProgramExit
from finetune_client.program import main
from tests.fakekubelet import FakeKubelet
from tests.integration import manifests
from tests.integration.api import Api, Object, path_of
from tests.integration.operators import Operators
from tests.integration.team import FOLLOWS, Team, checkpoint
from tests.integration.test_devicetime import running_pod
from tests.waiting import eventually
from tools.cluster import ControlPlane

Finetune = Callable[..., tuple[int, str]]


@pytest.fixture
def finetune(control_plane: ControlPlane, namespace: str, capsys: pytest.CaptureFixture[str]) -> Finetune:
    """Run the program as a user in the test's namespace; its exit code and what it prints."""

    def run(*arguments: str, user: str = "user") -> tuple[int, str]:
        kubeconfig = control_plane.client(user, administrator=user == "user")
        with pytest.raises(SystemExit) as end:
            main([*arguments, "--namespace", namespace, "--kubeconfig", str(kubeconfig)])
        printed = capsys.readouterr()
        return int(end.value.code or 0), printed.out + printed.err

    return run


@pytest.fixture
def team(api: Api, namespace: str, operators: Operators, kubelet: FakeKubelet) -> Team:
    return Team(api, namespace, operators.start().wait_active())


def test_checkpoints_are_approved_and_rejected_and_an_endpoint_is_rolled_back(
    team: Team, finetune: Finetune
) -> None:
    for name in ("first", "second", "third"):
        team.record(name)
    team.serve(FOLLOWS)
    for name in ("first", "second"):
        code, printed = finetune("approve", name, "--reason", "read 50 answers")
        assert code == 0
        assert "it becomes the champion of model line ticket-routing" in printed
        assert "if it meets their minScores: support." in printed
        team.until_served(routing=name)
    code, printed = finetune("approve", "first", "--reason", "again")
    assert "second, which was promoted later, stays the champion" in printed

    code, printed = finetune("rollback", "support")
    assert code == 0
    assert "routing = first (now second)" in printed
    team.until_served(routing="first")
    assert team.endpoint()["spec"]["models"][0]["pin"] == {"checkpoint": "first"}

    # The command to follow again, as it is printed.
    following = re.search(r"--type merge -p '(.+)'", printed)
    assert following is not None
    team.api.patch("InferenceDeployment", team.namespace, "support", json.loads(following.group(1)))
    team.until_served(routing="second")
    code, printed = finetune("reject", "second", "--reason", "it invents teams")
    assert "first is the champion of model line ticket-routing." in printed
    team.until_served(routing="first")
    assert team.until_reason("Checkpoint", "second", "Promoted", "Rejected") == "rejected: it invents teams"

    team.api.patch(
        "InferenceDeployment", team.namespace, "support", {"spec": {"strategy": {"type": "BlueGreen"}}}
    )
    finetune("approve", "third", "--reason", "better")
    team.until_reason("InferenceDeployment", "support", "Suspended", "AwaitingDecision")
    code, printed = finetune("rollback", "support", "--reason", "ana: answers in French")
    assert code == 0
    assert "which is Preview, is aborted" in printed
    assert "ana: answers in French" in team.until_reason(
        "InferenceDeployment", "support", "Stalled", "RolledBack"
    )
    assert team.served() == {"routing": "first"}


def test_a_run_is_suspended_resumed_and_cancelled_for_good(
    team: Team, kubelet: FakeKubelet, finetune: Finetune
) -> None:
    kubelet.held = {"train"}
    team.api.create(manifests.dataset(team.namespace))
    team.api.create(manifests.finetunejob(team.namespace))
    running_pod(team.api, team.namespace)
    code, printed = finetune("suspend", "routing")
    assert code == 0
    assert f"kubectl -n {team.namespace} get finetunejob routing --watch" in printed
    team.until_reason("FineTuneJob", "routing", "Suspended", "Suspended")
    assert finetune("suspend", "routing") == (0, "FineTuneJob routing is suspended already.\n")
    assert finetune("resume", "routing")[0] == 0
    running_pod(team.api, team.namespace)
    assert finetune("cancel", "routing")[0] == 0
    team.until_reason("FineTuneJob", "routing", "Stalled", "Cancelled")
    code, printed = finetune("resume", "routing")
    assert (code, "never starts again" in printed) == (ProgramExit.FAILED, True)
    assert finetune("cancel", "routing") == (
        0,
        "FineTuneJob routing has already been cancelled: there is nothing to cancel.\n",
    )


def test_a_user_without_the_right_learns_which_role_has_it(
    api: Api, installed: ControlPlane, namespace: str, finetune: Finetune
) -> None:
    for user, role in (("viewer", "view"), ("editor", "edit"), ("approver", "finetune-operator-approver")):
        installed.kubectl.run(
            "create",
            "rolebinding",
            user,
            f"--clusterrole={role}",
            f"--user={user}",
            f"--namespace={namespace}",
        )
    api.create(manifests.finetunejob(namespace))
    api.create(checkpoint(namespace, "first"))

    def refusal(*arguments: str, user: str) -> str:
        code, printed = finetune(*arguments, user=user)
        return printed if code == ProgramExit.FAILED else ""

    def patch_is_refused() -> str:
        printed = refusal("suspend", "routing", user="viewer")
        return printed if "may not patch" in printed else ""

    refused = eventually("the viewer sees the run", patch_is_refused)
    assert "viewer may not patch finetunejobs" in refused
    assert "the role edit has this right" in refused
    # Until the policy is in force, each new reason of the editor is accepted.
    reasons = (f"attempt {number}" for number in itertools.count())
    refused = eventually(
        "the policy is in force",
        lambda: refusal("approve", "first", "--reason", next(reasons), user="editor"),
    )
    assert "ClusterRole finetune-operator-approver" in refused
    code, printed = finetune("approve", "first", "--reason", "read 50 answers", user="approver")
    assert code == 0, printed
    assert "Its endpoints are not named: approver may not list inferencedeployments" in printed
    found = api.get("Checkpoint", namespace, "first")
    assert found is not None
    assert found["spec"]["approval"] == {"state": "Approved", "reason": "read 50 answers"}


def apply_as(api: Api, manager: str, manifest: Object) -> None:
    """Server-side apply as a GitOps tool sends it."""
    metadata = manifest["metadata"]
    path = path_of(manifest["kind"], metadata["namespace"], metadata["name"])
    query = f"?fieldManager={manager}&force=true"
    answer = api.request("PATCH", path + query, manifest, Content_Type="application/apply-patch+yaml")
    answer.raise_for_status()


def test_fields_that_flux_or_argo_cd_applied_are_refused_with_the_change_to_commit(
    api: Api, namespace: str, finetune: Finetune
) -> None:
    api.create(checkpoint(namespace, "first"))
    apply_as(api, "kustomize-controller", manifests.finetunejob(namespace))
    apply_as(api, "argocd-controller", manifests.inferencedeployment(namespace))
    approval: Any = {"approval": {"state": "Rejected", "reason": "old"}}
    apply_as(api, "kustomize-controller", manifests.of("Checkpoint", namespace, "first", approval))
    revision = {"name": "support-1", "state": "Canary"}
    api.patch("InferenceDeployment", namespace, "support", {"status": {"revisions": [revision]}}, "status")

    for arguments, tool, change in (
        (("suspend", "routing"), "Flux", "suspend: true"),
        (("cancel", "routing"), "Flux", "cancel: true"),
        (("approve", "first", "--reason", "fine"), "Flux", "state: Approved"),
        (("reject", "first", "--reason", "worse"), "Flux", "reason: worse"),
        (("rollback", "support"), "Argo CD", "verdict: Abort"),
    ):
        code, printed = finetune(*arguments)
        assert code == ProgramExit.OWNED_BY_GIT, printed
        assert f"is applied from Git by {tool}" in printed
        assert change in printed
    specs = json.dumps(
        [api.list(kind, namespace) for kind in ("FineTuneJob", "Checkpoint", "InferenceDeployment")]
    )
    for written in ('"finetune"', "Abort", "Approved", "worse", '"suspend": true', '"cancel": true'):
        assert written not in specs
