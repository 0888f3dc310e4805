# SPDX-License-Identifier: Apache-2.0
"""The chart's manifests on a real API server: they are accepted and grant exactly the intended rights."""

import json
from collections.abc import Callable

import pytest

from tests.integration.installation import OPERATOR, SYSTEM, can
from tests.integration.manifests import HYPERPARAMETERS
from tests.waiting import eventually
from tools.cluster import ClusterError, ControlPlane

DIGEST = "sha256:" + "a" * 64

SPEC = {
    "modelLine": "routing",
    "digest": DIGEST,
    "type": "Adapter",
    "step": 1,
    "epoch": 1,
    "uri": "pvc://artifacts/checkpoints/aa",
    "lineage": {
        "baseModel": {"uri": "pvc://models/m", "digest": DIGEST},
        "datasetVersion": "tickets-1a2b3c4d5e6f",
        "job": {"name": "routing", "uid": "u"},
        "method": {"objective": "SFT", "type": "LoRA"},
        "adapter": {"r": 16},
        "hyperparameters": HYPERPARAMETERS,
        "trainerImage": "finetune-trainer:test",
    },
}
CHECKPOINT = {
    "apiVersion": "finetune.dev/v1alpha1",
    "kind": "Checkpoint",
    "metadata": {"name": "routing-1"},
    "spec": SPEC,
}


def test_the_pod_is_admitted_where_the_restricted_policy_is_enforced(installed: ControlPlane) -> None:
    pods = eventually(
        "a pod of the operator",
        lambda: installed.kubectl.get("pods", f"--namespace={SYSTEM}")["items"],
        describe=lambda: installed.kubectl.run("describe", "replicasets", f"--namespace={SYSTEM}"),
    )
    assert [pod["spec"]["serviceAccountName"] for pod in pods] == ["finetune-operator"]


def test_the_default_profile_is_accepted(installed: ControlPlane) -> None:
    profile = installed.kubectl.get("computeprofile", "default")
    assert profile["metadata"]["annotations"]["finetune.dev/is-default-profile"] == "true"


@pytest.mark.parametrize(
    ("verb", "resource"),
    [
        ("watch", "finetunejobs.finetune.dev"),
        ("patch", "checkpoints.finetune.dev/status"),
        ("create", "datasetversions.finetune.dev"),
        ("delete", "datasetversions.finetune.dev"),
        ("create", "finetunejobs.finetune.dev"),
        ("patch", "finetunejobs.finetune.dev"),
        ("create", "jobs.batch"),
        ("delete", "jobs.batch"),
        ("patch", "deployments.apps"),
        ("patch", "services"),
        ("delete", "services"),
        ("get", "persistentvolumeclaims"),
        ("create", "tokenreviews.authentication.k8s.io"),
    ],
)
def test_the_operator_may_do_what_it_has_to(installed: ControlPlane, verb: str, resource: str) -> None:
    assert can(installed, OPERATOR, verb, resource)


@pytest.mark.parametrize(
    ("verb", "resource"),
    [
        ("get", "secrets"),
        ("list", "secrets"),
        ("get", "configmaps"),
        ("create", "pods"),
        ("delete", "pods"),
        ("patch", "jobs.batch"),
        ("delete", "finetunejobs.finetune.dev"),
        ("create", "finetuneschedules.finetune.dev"),
        ("create", "finetunesweeps.finetune.dev"),
        ("delete", "persistentvolumeclaims"),
        ("patch", "serviceaccounts"),
    ],
)
def test_the_operator_may_not_do_what_it_never_does(
    installed: ControlPlane, verb: str, resource: str
) -> None:
    assert not can(installed, OPERATOR, verb, resource)


def test_editors_run_jobs_and_leave_records_and_profiles_alone(
    installed: ControlPlane, namespace: str
) -> None:
    installed.kubectl.run(
        "create", "rolebinding", "editor", "--clusterrole=edit", "--user=editor", f"--namespace={namespace}"
    )
    eventually(
        "the cluster's role edit has our kinds",
        lambda: can(installed, "editor", "create", "finetunejobs.finetune.dev", namespace),
    )
    assert can(installed, "editor", "patch", "inferencedeployments.finetune.dev/scale", namespace)
    assert not can(installed, "editor", "create", "checkpoints.finetune.dev", namespace)
    assert not can(installed, "editor", "create", "computeprofiles.finetune.dev")
    assert can(installed, "anyone", "list", "computeprofiles.finetune.dev")
    assert not can(installed, "anyone", "patch", "computeprofiles.finetune.dev")


class Approvals:
    """Attempts of users to change the approval of the Checkpoint `routing-1`."""

    def __init__(self, cluster: ControlPlane, namespace: str) -> None:
        self.kubectl = cluster.kubectl
        self.scope = f"--namespace={namespace}"

    def set(self, approval: dict[str, str] | None, *user: str) -> None:
        patch = json.dumps({"spec": {"approval": approval}})
        command = ("patch", "checkpoint", "routing-1", "--type=merge", f"--patch={patch}")
        self.kubectl.run(*command, self.scope, *user)

    def is_refused(self, approval: dict[str, str] | None, user: str) -> bool:
        return self.is_forbidden(lambda: self.set(approval, f"--as={user}"))

    def is_forbidden(self, attempt: Callable[[], object]) -> bool:
        try:
            attempt()
        except ClusterError as error:
            return "requires the verb approve on checkpoints.finetune.dev" in str(error)
        return False

    def allow(self, user: str, *role: str) -> None:
        self.kubectl.run("create", "rolebinding", user, *role, f"--user={user}", self.scope)


@pytest.fixture
def approvals(installed: ControlPlane, namespace: str) -> Approvals:
    """A Checkpoint, an editor, an approver, and the active policy."""
    made = Approvals(installed, namespace)
    made.allow("editor", "--clusterrole=edit")
    made.allow("approver", "--clusterrole=finetune-operator-approver")
    made.kubectl.run("create", "--filename=-", made.scope, text=json.dumps(CHECKPOINT))

    def in_force() -> bool:
        refused = made.is_refused({"state": "Rejected"}, "editor")
        if not refused:  # the policy holds a moment after it was made; until then an editor's word is taken
            made.set(None)
        return refused

    eventually("the policy refuses an editor's word", in_force)
    return made


def test_an_approval_takes_the_verb_approve_and_any_other_change_does_not(approvals: Approvals) -> None:
    approvals.kubectl.run("label", "checkpoint", "routing-1", "seen=yes", "--as=editor", approvals.scope)
    approvals.set({"state": "Approved", "reason": "read 50 answers"}, "--as=approver")
    assert approvals.is_refused({"state": "Rejected"}, "editor")
    assert approvals.is_refused({"reason": "nobody read anything"}, "editor")
    assert approvals.is_refused(None, "editor")
    kept = approvals.kubectl.get("checkpoint", "routing-1", approvals.scope)["spec"]["approval"]
    assert kept == {"state": "Approved", "reason": "read 50 answers"}
    # A user without the right to approve may still make other changes to an approved Checkpoint.
    approvals.kubectl.run("label", "checkpoint", "routing-1", "seen-", "--as=editor", approvals.scope)


def test_a_checkpoint_cannot_be_created_with_an_approval_by_who_may_not_approve(
    approvals: Approvals,
) -> None:
    rights = ("--verb=create,get", "--resource=checkpoints.finetune.dev")
    approvals.kubectl.run("create", "role", "restorer", *rights, approvals.scope)
    approvals.allow("restorer", "--role=restorer")

    def create(name: str, user: str, **spec: object) -> None:
        made = {**CHECKPOINT, "metadata": {"name": name}, "spec": {**SPEC, **spec}}
        approvals.kubectl.run(
            "create", "--filename=-", approvals.scope, f"--as={user}", text=json.dumps(made)
        )

    approved = {"approval": {"state": "Approved"}}
    assert approvals.is_forbidden(lambda: create("routing-2", "restorer", **approved))
    create("routing-2", "restorer")
    create("routing-3", OPERATOR)
