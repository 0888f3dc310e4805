# SPDX-License-Identifier: Apache-2.0
"""The pod of a transfer: what it is, why it does not start, and which image it has."""

import copy
from typing import Any, Final

import pytest

from finetune_client.backend import Object
from finetune_client.errors import OperationError
from finetune_client.transfer.pod import build_pod, find_image, start_problem
from finetune_operator.api.compute_profile import ComputeProfile

IMAGE: Final = "registry.example/trainer:1"
POD: Final[Object] = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {
        "generateName": "finetune-transfer-",
        "labels": {"app.kubernetes.io/managed-by": "finetune", "finetune.dev/transfer": "0123456789abcdef"},
        "annotations": {"finetune.dev/transfer-process": "42"},
    },
    "spec": {
        "serviceAccountName": "finetune-runner",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "fsGroup": 65532,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "restartPolicy": "Never",
        "activeDeadlineSeconds": 21600,
        "terminationGracePeriodSeconds": 0,
        "containers": [
            {
                "name": "transfer",
                "image": IMAGE,
                "imagePullPolicy": "IfNotPresent",
                "command": ["sleep", "21600"],
                "env": [],
                "resources": {
                    "requests": {"cpu": "50m", "memory": "64Mi"},
                    "limits": {"cpu": "1", "memory": "256Mi"},
                },
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
                "volumeMounts": [{"name": "store", "mountPath": "/mnt/store"}],
            }
        ],
        "volumes": [{"name": "store", "persistentVolumeClaim": {"claimName": "artifacts"}}],
    },
}
"""A pod that writes to a claim."""


def profile(**spec: Any) -> ComputeProfile:
    return ComputeProfile.model_validate({"metadata": {"name": "cpu"}, "spec": spec})


def built(shape: ComputeProfile | None = None, *, writes: bool = True) -> Object:
    return build_pod(
        claim="artifacts", image=IMAGE, account="finetune-runner", profile=shape, writes=writes,
        owner="0123456789abcdef", process=42,
    )  # fmt: skip


def test_the_pod_is_restricted_has_no_token_and_no_owner_and_ends_by_itself() -> None:
    assert built() == POD


def test_a_download_mounts_the_claim_for_reading_only() -> None:
    spec = built(writes=False)["spec"]
    assert spec["volumes"][0]["persistentVolumeClaim"] == {"claimName": "artifacts", "readOnly": True}
    assert spec["containers"][0]["volumeMounts"] == [
        {"name": "store", "mountPath": "/mnt/store", "readOnly": True}
    ]


def test_the_pod_goes_where_the_profile_puts_small_pods_and_keeps_its_own_label() -> None:
    shape = profile(
        pods=[
            {
                "stages": ["cpu"],
                "nodeSelector": {"pool": "small"},
                "imagePullSecrets": [{"name": "registry"}],
                "labels": {"cost-centre": "7"},
                "cpuLimitRequestRatio": 4,
            }
        ]
    )
    pod = built(shape)
    assert pod["spec"]["nodeSelector"] == {"pool": "small"}
    assert pod["spec"]["imagePullSecrets"] == [{"name": "registry"}]
    assert pod["metadata"]["labels"] == {**POD["metadata"]["labels"], "cost-centre": "7"}
    assert pod["spec"]["containers"][0]["resources"]["limits"]["cpu"] == "200m"


def pending(**status: Any) -> Object:
    pod = copy.deepcopy(POD)
    pod["metadata"]["name"] = "finetune-transfer-x"
    pod["metadata"]["namespace"] = "team-a"
    return {**pod, "status": {"phase": "Pending", **status}}


def waiting(reason: str, message: str = "") -> Object:
    state = {"waiting": {"reason": reason, "message": message}}
    return pending(containerStatuses=[{"name": "transfer", "state": state}])


@pytest.mark.parametrize(
    ("pod", "problem", "is_final"),
    [
        (pending(), "the node pulls its image or mounts claim artifacts", False),
        (waiting("ContainerCreating"), "the node pulls its image", False),
        (waiting("ErrImagePull", "no route"), "cannot be pulled", False),
        (waiting("ImagePullBackOff", "denied"), f"image {IMAGE} of the pod cannot be pulled", True),
        (
            waiting("CreateContainerConfigError", "uid"),
            "does not start. CreateContainerConfigError: uid",
            True,
        ),
        (
            pending(
                conditions=[
                    {
                        "type": "PodScheduled",
                        "status": "False",
                        "message": "0/3 nodes are available: unbound immediate PersistentVolumeClaims",
                    }
                ]
            ),
            "kubectl get pvc -n team-a shows which claim is not bound",
            False,
        ),
    ],
)
def test_a_pod_that_does_not_start_says_why(pod: Object, problem: str, is_final: bool) -> None:
    found, ends = start_problem(pod, "artifacts")
    assert problem in found
    assert ends is is_final


class Namespace:
    """Objects and pods of a namespace."""

    namespace = "team-a"

    def __init__(self, pods: tuple[str, ...] = (), **kinds: list[Object]) -> None:
        self._pods = pods
        self._kinds = kinds
        self.access = self

    def objects(self, kind: str) -> list[Object]:
        return self._kinds.get(kind, [])

    def pods(self, namespace: str, selector: str) -> list[Object]:
        assert (namespace, selector) == ("team-a", "app.kubernetes.io/managed-by=finetune-operator")
        return [
            {"metadata": {"creationTimestamp": image}, "spec": {"containers": [{"image": image}]}}
            for image in self._pods
        ]


def run(created: str, image: str | None) -> Object:
    resolved = {"trainerImage": image} if image else {}
    return {"metadata": {"creationTimestamp": created}, "status": {"resolved": resolved}}


CHECKPOINT: Final[Object] = {
    "metadata": {"creationTimestamp": "2026-01-01"},
    "spec": {"lineage": {"trainerImage": "of-a-checkpoint"}},
}


@pytest.mark.parametrize(
    ("namespace", "image"),
    [
        (Namespace(FineTuneJob=[run("2", "newest"), run("1", "old"), run("3", None)]), "newest"),
        (Namespace(FineTuneJob=[run("3", None)], Checkpoint=[CHECKPOINT]), "of-a-checkpoint"),
        (Namespace(pods=("of-a-prepare-pod",)), "of-a-prepare-pod"),
    ],
)
def test_the_image_is_the_newest_that_the_namespace_has_used(namespace: Namespace, image: str) -> None:
    assert find_image(namespace, profile()) == image  # type: ignore[arg-type]


def test_the_image_of_the_profile_comes_first() -> None:
    namespace: Any = Namespace(FineTuneJob=[run("2", "newest")])
    assert find_image(namespace, profile(images={"trainer": "of-the-profile"})) == "of-the-profile"


def test_without_an_image_the_option_and_the_command_of_an_administrator_are_named() -> None:
    namespace: Any = Namespace()
    with pytest.raises(OperationError, match="give it, or another image with Python, as --image") as error:
        find_image(namespace, None)
    assert "TRAINER_IMAGE" in error.value.commands[1]
