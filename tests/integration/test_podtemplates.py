# SPDX-License-Identifier: Apache-2.0
"""Pods that a ComputeProfile shapes, in a namespace with a quota and a limit range, on a real API server.

The quota counts CPU limits, so it refuses a container without one. The default limit of the limit range is
below every request of the operator, so it refuses a container that takes the default.
"""

from typing import Any

import pytest

from tests.fakekubelet import FakeKubelet
from tests.integration import manifests
from tests.integration.api import Api, Object
from tests.integration.chain import until_condition
from tests.integration.operators import Operator, Operators
from tests.waiting import eventually

EVERYWHERE: Object = {
    "securityContext": {"supplementalGroups": [2000]},
    "labels": {"sidecar.istio.io/inject": "false"},
    "annotations": {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"},
    "env": [{"name": "NCCL_DEBUG", "value": "WARN"}],
    "nodeSelector": {"kubernetes.io/arch": "amd64"},
    "tolerations": [{"key": "tenant", "operator": "Equal", "value": "ml"}],
    "imagePullSecrets": [{"name": "mirror"}],
    "affinity": {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "spot", "operator": "DoesNotExist"}]}]
            }
        },
        "podAntiAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [
                {"weight": 1, "podAffinityTerm": {"topologyKey": "kubernetes.io/hostname"}}
            ]
        },
    },
    "topologySpreadConstraints": [{"topologyKey": "topology.kubernetes.io/zone"}],
    "cpuLimitRequestRatio": 2,
}
TRAINING: Object = {
    "stages": ["train", "serve"],
    "annotations": {"k8s.v1.cni.cncf.io/networks": "rdma"},
    "schedulerName": "gang",
    "extendedResources": {"rdma/hca": "1"},
    "resourceClaims": [{"name": "nic", "resourceClaimTemplateName": "nic"}],
}
PODS = {"prepare", "preflight", "train", "evaluate", "serve"}


@pytest.fixture
def operator(api: Api, namespace: str, kubelet: FakeKubelet, operators: Operators) -> Operator:
    """An operator, and a run and an endpoint of a profile with additions for all pods."""
    spec = {"pods": [EVERYWHERE, TRAINING]}
    api.patch("ComputeProfile", "", manifests.profile_name(namespace), {"spec": spec})
    limits = [{"type": "Container", "default": {"cpu": "1m"}, "defaultRequest": {"cpu": "1m"}}]
    for kind, strict in (
        ("ResourceQuota", {"hard": {"limits.cpu": "100", "pods": "100"}}),
        ("LimitRange", {"limits": limits}),
    ):
        metadata = {"name": "strict", "namespace": namespace}
        api.create({"apiVersion": "v1", "kind": kind, "metadata": metadata, "spec": strict})
    operator = operators.start().wait_active()
    own_rows = {"source": {"uri": "configmap://tickets/rows.jsonl"}}
    api.create(manifests.finetunejob(namespace, dataset=own_rows))
    api.create(manifests.inferencedeployment(namespace))
    return operator


def test_every_pod_of_the_chain_is_admitted_and_has_what_the_profile_adds(
    api: Api, namespace: str, operator: Operator
) -> None:
    pods: dict[str, Object] = {}

    def seen() -> bool:
        for pod in api.list("Pod", namespace):
            pods.setdefault(pod["metadata"]["labels"].get("finetune.dev/stage", "serve"), pod)
        return pods.keys() >= PODS

    eventually("a pod of each stage", seen, 60, lambda: f"{sorted(pods)}\n{operator.log[-3000:]}")
    until_condition(api, (namespace, "InferenceDeployment", "support"), "Ready", operator)
    for stage, pod in pods.items():
        assert pod["metadata"]["labels"].items() >= EVERYWHERE["labels"].items()
        assert pod["metadata"]["annotations"].items() >= EVERYWHERE["annotations"].items()
        spec = pod["spec"]
        assert spec["nodeSelector"] == EVERYWHERE["nodeSelector"]
        assert spec["imagePullSecrets"] == [{"name": "mirror"}]
        assert spec["securityContext"]["supplementalGroups"] == [2000]
        assert "runAsUser" not in spec["securityContext"]
        assert EVERYWHERE["tolerations"][0] in spec["tolerations"]
        group = {"finetune.dev/run", "finetune.dev/revision" if stage == "serve" else "finetune.dev/stage"}
        (spread,) = spec["topologySpreadConstraints"]
        assert spread["labelSelector"]["matchLabels"].keys() == group
        assert spec["affinity"].keys() == {"nodeAffinity", "podAntiAffinity"}
        for container in (*spec["containers"], *spec.get("initContainers", ())):
            assert {"name": "NCCL_DEBUG", "value": "WARN"} in container["env"]
            assert cores(container, "limits") == 2 * cores(container, "requests")
        is_special = stage in TRAINING["stages"]
        assert spec["schedulerName"] == ("gang" if is_special else "default-scheduler")
        assert ("rdma/hca" in spec["containers"][0]["resources"]["limits"]) == is_special
        assert (spec.get("resourceClaims", []) != []) == is_special


def test_a_namespace_that_gets_the_labels_of_a_profile_may_use_it_and_has_its_own_folder(
    api: Api, namespace: str, kubelet: FakeKubelet, operators: Operators
) -> None:
    selector = {"matchLabels": {"example.com/gpus": "true"}}
    spec = {"namespaces": {"selector": selector}, "store": {"uri": "pvc://artifacts/{namespace}"}}
    api.patch("ComputeProfile", "", manifests.profile_name(namespace), {"spec": spec})
    operator = operators.start().wait_active()
    own_rows = {"source": {"uri": "configmap://tickets/rows.jsonl"}}
    run = manifests.finetunejob(namespace, dataset=own_rows)
    del run["spec"]["store"]
    api.create(run)

    def reason() -> str:
        found = manifests.condition(api.get("FineTuneJob", namespace, "routing"), "Reconciling")
        return str(found.get("reason", ""))

    eventually(
        "the run is refused", lambda: reason() == "ProfileNotAllowed", 60, lambda: operator.log[-3000:]
    )
    labels = {"metadata": {"labels": selector["matchLabels"]}}
    api.request(
        "PATCH",
        f"/api/v1/namespaces/{namespace}",
        labels,
        Content_Type="application/merge-patch+json",
    ).raise_for_status()
    found = until_condition(api, (namespace, "FineTuneJob", "routing"), "Preflighted", operator)
    assert found["status"]["resolved"]["store"] == f"pvc://artifacts/{namespace}"
    # With such a profile, the operators of later tests would read namespaces in every pass.
    api.delete("ComputeProfile", "", manifests.profile_name(namespace))


def cores(container: Any, kind: str) -> float:
    cpu: str = container["resources"][kind]["cpu"]
    return float(cpu.removesuffix("m")) / (1000 if cpu.endswith("m") else 1)
