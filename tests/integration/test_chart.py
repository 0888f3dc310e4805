"""The chart's manifests on a real API server: accepted, and giving the rights that they should, no more."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hack.cluster import ClusterError, ControlPlane, program
from hack.cluster.binaries import ensure
from hack.cluster.toolchain import HELM
from tests.waiting import eventually

CHART = Path(__file__).parents[2] / "charts" / "finetune-operator"
SYSTEM = "finetune-system"
OPERATOR = f"system:serviceaccount:{SYSTEM}:finetune-operator"
DIGEST = "sha256:" + "a" * 64

CHECKPOINT = {
    "apiVersion": "finetune.dev/v1alpha1",
    "kind": "Checkpoint",
    "metadata": {"name": "routing-1"},
    "spec": {
        "model": "routing",
        "digest": DIGEST,
        "type": "Adapter",
        "step": 1,
        "epoch": 1,
        "uri": "pvc://artifacts/checkpoints/aa",
        "lineage": {
            "baseModel": {"uri": "pvc://models/m", "digest": DIGEST},
            "datasetVersion": "tickets-1a2b3c4d5e6f",
            "job": {"name": "routing", "uid": "u"},
            "hyperparameters": {
                "epochs": 1,
                "learningRate": 0.001,
                "perDeviceBatchSize": 1,
                "gradientAccumulationSteps": 1,
                "maxSequenceLength": 64,
                "seed": 0,
                "totalSteps": 1,
                "saveEverySteps": 1,
            },
            "trainerImage": "finetune-trainer:test",
        },
    },
}


@pytest.fixture(scope="module")
def rendered() -> str:
    ensure((HELM,))
    command = [str(program("helm")), "template", "finetune-operator", str(CHART), f"--namespace={SYSTEM}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def installed(control_plane: ControlPlane, rendered: str) -> Iterator[ControlPlane]:
    """The chart in a namespace that enforces the restricted policy; no node runs its pod."""
    control_plane.kubectl.run("create", "namespace", SYSTEM)
    policy = "pod-security.kubernetes.io/enforce=restricted"
    control_plane.kubectl.run("label", "namespace", SYSTEM, policy)
    eventually(
        "the default service account",
        lambda: control_plane.kubectl.succeeds("get", "serviceaccount/default", f"--namespace={SYSTEM}"),
    )
    control_plane.kubectl.run("apply", "--server-side", "--validate=strict", "--filename=-", text=rendered)
    yield control_plane
    control_plane.kubectl.run("delete", "--ignore-not-found", "--filename=-", text=rendered)


def can(cluster: ControlPlane, user: str, verb: str, resource: str, namespace: str = "") -> bool:
    name, _, subresource = resource.partition("/")
    options = [f"--namespace={namespace}"] if namespace else ["--all-namespaces"]
    options += [f"--subresource={subresource}"] if subresource else []
    return cluster.kubectl.succeeds("auth", "can-i", verb, name, f"--as={user}", *options, "--quiet")


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
        ("create", "jobs.batch"),
        ("delete", "jobs.batch"),
        ("patch", "deployments.apps"),
        ("patch", "services"),
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
        ("patch", "finetunejobs.finetune.dev"),
        ("delete", "checkpoints.finetune.dev"),
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


def test_an_approval_takes_the_verb_approve_and_any_other_change_does_not(
    installed: ControlPlane, namespace: str
) -> None:
    scope = f"--namespace={namespace}"
    for user, role in (("editor", "edit"), ("approver", "finetune-operator-approver")):
        installed.kubectl.run("create", "rolebinding", user, f"--clusterrole={role}", f"--user={user}", scope)
    installed.kubectl.run("create", "--filename=-", scope, text=json.dumps(CHECKPOINT))

    def approve(user: str, state: str) -> None:
        patch = json.dumps({"spec": {"approval": {"state": state}}})
        installed.kubectl.run(
            "patch", "checkpoint", "routing-1", "--type=merge", f"--patch={patch}", f"--as={user}", scope
        )

    def refused() -> bool:
        # The policy holds a moment after it was made; until then the patch changes nothing but this object.
        try:
            approve("editor", "Rejected")
        except ClusterError as error:
            return "takes the verb approve on checkpoints.finetune.dev" in str(error)
        installed.kubectl.run(
            "patch", "checkpoint", "routing-1", "--type=merge", '--patch={"spec":{"approval":null}}', scope
        )
        return False

    eventually("the policy refuses an editor's word", refused)
    installed.kubectl.run("label", "checkpoint", "routing-1", "seen=yes", "--as=editor", scope)
    approve("approver", "Approved")
    assert installed.kubectl.get("checkpoint", "routing-1", scope)["spec"]["approval"]["state"] == "Approved"
