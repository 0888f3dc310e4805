# SPDX-License-Identifier: Apache-2.0
"""Additions of a ComputeProfile to the pods of stages and endpoints."""

from typing import Any

import pytest

from finetune_operator.api.computeprofile import ComputeProfile
from finetune_operator.api.podtemplate import RESERVED_VARIABLES, PodStage
from finetune_operator.manifests.engines.vllm import engine_environment
from finetune_operator.manifests.podshape import shaped
from finetune_operator.plan import Manifest
from finetune_operator.stagetable import STAGES, JobStage
from tests.unit.operator.endpoints import profile as endpoint_profile
from tests.unit.operator.endpoints import serving
from tests.unit.operator.runobjects import profile
from tests.unit.operator.test_manifests_jobs import built, pod_of, profile_of

RUN_GROUP = {"finetune.dev/run": "run", "finetune.dev/stage": "train"}
GPUS = {
    "devices": {"resource": "nvidia.com/gpu", "max": 8},
    "nodeSelector": {"pool": "gpu"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
    "runtimeClassName": "nvidia",
}


def shaped_by(*templates: Manifest, stage: PodStage = "train", **spec: Any) -> Manifest:
    """A small pod template with these additions."""
    container = {
        "name": "trainer",
        "env": [{"name": "HOME", "value": "/tmp"}, {"name": "OMP_NUM_THREADS", "value": "2"}],
        "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"memory": "1Gi"}},
    }
    fetch = {**container, "name": "fetch"}
    security = {"runAsNonRoot": True, "runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 65532}
    template = {
        "metadata": {"labels": {"finetune.dev/run": "run"}},
        "spec": {"securityContext": security, "containers": [container], "initContainers": [fetch]},
    }
    uses = ComputeProfile.model_validate(profile(podTemplates=list(templates), **spec))
    return shaped(template, uses, stage, RUN_GROUP)


def environment(container: Manifest) -> dict[str, str]:
    return {variable["name"]: variable["value"] for variable in container["env"]}


def test_a_profile_without_additions_changes_nothing() -> None:
    assert built("train", profile_of(), 2)["spec"] == built("train", profile_of(podTemplates=[{}]), 2)["spec"]


@pytest.mark.parametrize("stage", [stage for stage, row in STAGES.items() if not row.uses_devices])
def test_pods_without_devices_are_placed_by_the_template_of_prepare(stage: JobStage) -> None:
    pool = {"nodeSelector": {"pool": "cpu"}, "tolerations": [{"key": "tenant", "operator": "Exists"}]}
    templates = [{"stages": ["prepare"], **pool}, {"stages": ["train", "evaluate"], "schedulerName": "gang"}]
    pod = pod_of(built(stage, profile_of(**GPUS, podTemplates=templates)))
    assert pod["nodeSelector"] == {"pool": "cpu"}
    assert pod["tolerations"] == [{"key": "tenant", "operator": "Exists"}]
    assert "runtimeClassName" not in pod
    assert "schedulerName" not in pod


def test_pods_with_devices_keep_their_own_placement_and_get_that_of_all() -> None:
    everywhere = {"nodeSelector": {"kubernetes.io/arch": "amd64"}, "tolerations": [{"operator": "Exists"}]}
    pod = pod_of(built("train", profile_of(**GPUS, podTemplates=[everywhere]), 1))
    assert pod["nodeSelector"] == {"pool": "gpu", "kubernetes.io/arch": "amd64"}
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists"}, {"operator": "Exists"}]
    assert pod["runtimeClassName"] == "nvidia"


def test_of_two_values_for_one_name_the_later_applies() -> None:
    first = {
        "annotations": {"a": "1", "b": "1"},
        "env": [{"name": "X", "value": "1"}, {"name": "Y", "value": "1"}],
        "imagePullSecrets": [{"name": "mirror"}],
        "schedulerName": "first",
    }
    second = {
        "annotations": {"b": "2"},
        "env": [{"name": "Y", "value": "2"}],
        "imagePullSecrets": [{"name": "mirror"}, {"name": "team"}],
        "schedulerName": "second",
    }
    template = shaped_by(first, second, {"stages": ["serve"], "annotations": {"a": "3"}})
    assert template["metadata"]["annotations"] == {"a": "1", "b": "2"}
    spec = template["spec"]
    assert environment(spec["containers"][0]) | {"X": "1", "Y": "2"} == environment(spec["containers"][0])
    assert spec["imagePullSecrets"] == [{"name": "mirror"}, {"name": "team"}]
    assert spec["schedulerName"] == "second"


def test_variables_reach_every_container_and_replace_a_default() -> None:
    spec = shaped_by({"env": [{"name": "OMP_NUM_THREADS", "value": "8"}]})["spec"]
    expected = {"HOME": "/tmp", "OMP_NUM_THREADS": "8"}
    assert [environment(each) for each in (*spec["containers"], *spec["initContainers"])] == [expected] * 2


def test_isolated_pods_get_no_further_network() -> None:
    network, mesh = {"k8s.v1.cni.cncf.io/networks": "rdma"}, {"linkerd.io/inject": "disabled"}
    uses = profile_of(podTemplates=[{"annotations": {**network, **mesh}}])
    annotations = {
        stage: built(stage, uses)["spec"]["template"]["metadata"]["annotations"] for stage in STAGES
    }
    isolated = {stage for stage, row in STAGES.items() if row.isolated}
    assert {stage for stage, found in annotations.items() if network.items() <= found.items()} == (
        set(STAGES) - isolated
    )
    assert all(mesh.items() <= found.items() for found in annotations.values())


def test_labels_of_the_operator_stay() -> None:
    labels = shaped_by({"labels": {"finetune.dev/run": "other", "team": "a"}})["metadata"]["labels"]
    assert labels == {"finetune.dev/run": "run", "team": "a"}


def test_the_devices_of_a_run_are_those_that_it_requests() -> None:
    gpus = profile_of(**GPUS, podTemplates=[{"extendedResources": {"nvidia.com/gpu": "8"}}])
    (container,) = pod_of(built("train", gpus, 2))["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "2"


def test_further_resources_are_those_of_the_main_container() -> None:
    claim = {"name": "nic", "resourceClaimTemplateName": "rdma", "request": "port"}
    spec = shaped_by({"extendedResources": {"rdma/hca": "1"}, "resourceClaims": [claim]})["spec"]
    main, fetch = spec["containers"][0], spec["initContainers"][0]
    assert main["resources"]["limits"] == {"memory": "1Gi", "rdma/hca": "1"}
    assert main["resources"]["claims"] == [{"name": "nic", "request": "port"}]
    assert spec["resourceClaims"] == [{"name": "nic", "resourceClaimTemplateName": "rdma"}]
    assert fetch["resources"]["limits"] == {"memory": "1Gi"}
    assert "claims" not in fetch["resources"]


@pytest.mark.parametrize(("ratio", "limit"), [(1, "500m"), (1.1, "550m"), (4, "2000m")])
def test_every_container_has_a_cpu_limit_if_the_profile_says_so(ratio: float, limit: str) -> None:
    spec = shaped_by({"cpuLimitRequestRatio": ratio})["spec"]
    containers = [*spec["containers"], *spec["initContainers"]]
    assert [each["resources"]["limits"]["cpu"] for each in containers] == [limit] * 2


@pytest.mark.parametrize(
    ("given", "ids"),
    [
        ({}, {}),
        (
            {"runAsUser": 1000, "fsGroup": 2000, "supplementalGroups": [5]},
            {"runAsUser": 1000, "fsGroup": 2000, "supplementalGroups": [5]},
        ),
    ],
    ids=["chosen by the cluster", "given"],
)
def test_the_user_of_pods_is_that_of_the_profile(given: Manifest, ids: Manifest) -> None:
    template = shaped_by(securityContext=given)
    assert template["spec"]["securityContext"] == {"runAsNonRoot": True, **ids}
    # Libraries look for the name of the user, and the image has none for this uid.
    containers = [*template["spec"]["containers"], *template["spec"]["initContainers"]]
    assert [environment(each)["USER"] for each in containers] == ["finetune"] * 2


def test_an_absent_selector_means_the_pods_of_the_same_stage() -> None:
    rack = {"topologyKey": "rack"}
    team = {"topologyKey": "zone", "labelSelector": {"matchLabels": {"team": "a"}}}
    affinity = {
        "podAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": rack}]
        },
        "podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [team]},
    }
    spec = shaped_by({"affinity": affinity, "topologySpreadConstraints": [{"topologyKey": "rack"}]})["spec"]
    near = spec["affinity"]["podAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    away = spec["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    own = {"labelSelector": {"matchLabels": RUN_GROUP}}
    assert near == [{"weight": 100, "podAffinityTerm": {**rack, **own}}]
    assert away == [team]
    assert spec["topologySpreadConstraints"] == [
        {"topologyKey": "rack", "maxSkew": 1, "whenUnsatisfiable": "ScheduleAnyway", **own}
    ]


def test_an_edit_of_the_additions_starts_no_revision() -> None:
    cluster, revision = serving()
    template = {"labels": {"mesh": "off"}, "env": [{"name": "X", "value": "1"}], "schedulerName": "gang"}
    cluster.put(endpoint_profile(podTemplates=[template], securityContext={}))
    cluster.settle()
    assert list(cluster.deployments) == [revision]
    cluster.edit(restartedAt="2030-01-02T03:04:05Z")
    cluster.settle()
    (new,) = cluster.deployments.keys() - {revision}
    pod = cluster.deployments[new]["spec"]["template"]
    assert pod["metadata"]["labels"]["mesh"] == "off"
    assert pod["spec"]["schedulerName"] == "gang"
    assert "runAsUser" not in pod["spec"]["securityContext"]
    assert {"name": "X", "value": "1"} in pod["spec"]["containers"][0]["env"]


def test_the_variables_of_the_operator_are_reserved() -> None:
    own = {variable["name"] for variable in engine_environment("/folder")} | {"HOME"}
    assert own <= set(RESERVED_VARIABLES)
