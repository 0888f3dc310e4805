# SPDX-License-Identifier: Apache-2.0
"""Entries of `pods` of a ComputeProfile: how they are merged, and the pods of stages and endpoints."""

from typing import Any

import pytest

from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.api.pod_template import RESERVED_VARIABLES, PodStage, PodTemplate, merge_entries
from finetune_operator.manifests.engines.vllm import engine_environment
from finetune_operator.manifests.pod_entries import apply_pod_entries
from finetune_operator.manifests.revision import HASHED
from finetune_operator.plan import Manifest
from finetune_operator.stage_table import STAGES, JobStage
from tests.unit.operator.endpoints import profile as endpoint_profile
from tests.unit.operator.endpoints import serving
from tests.unit.operator.runobjects import profile
from tests.unit.operator.test_manifests_jobs import built, pod_of, profile_of

RUN_GROUP = {"finetune.dev/run": "run", "finetune.dev/stage": "train"}
GPU: Manifest = {"accelerator": {"resource": "nvidia.com/gpu", "maxPerPod": 8}}
WITH_DEVICES: Manifest = {
    "stages": ["train", "evaluate", "serve"],
    "nodeSelector": {"pool": "gpu"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
    "runtimeClassName": "nvidia",
}


def merge(*entries: Manifest, stages: tuple[PodStage, ...] = ("train",)) -> Manifest:
    """What the entries say together about pods with these names."""
    together = merge_entries([PodTemplate.model_validate(each) for each in entries], stages)
    return together.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude_none=True)


def shaped_by(*entries: Manifest) -> Manifest:
    """A small pod template with these entries."""
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
    uses = ComputeProfile.model_validate(profile(pods=list(entries)))
    return apply_pod_entries(template, uses, ["train"], RUN_GROUP)


def environment(container: Manifest) -> dict[str, str]:
    return {variable["name"]: variable["value"] for variable in container["env"]}


@pytest.mark.parametrize(
    ("field", "first", "second", "together"),
    [
        ("labels", {"a": "1", "b": "1"}, {"b": "2"}, {"a": "1", "b": "2"}),
        ("nodeSelector", {"pool": "a", "arch": "x"}, {"pool": "b"}, {"pool": "b", "arch": "x"}),
        ("extendedResources", {"rdma/hca": "1"}, {"rdma/hca": "2"}, {"rdma/hca": "2"}),
        (
            "env",
            [{"name": "X", "value": "1"}, {"name": "Y", "value": "1"}],
            [{"name": "Y", "value": "2"}],
            [{"name": "X", "value": "1"}, {"name": "Y", "value": "2"}],
        ),
        (
            "tolerations",
            [{"operator": "Exists"}],
            [{"operator": "Exists"}, {"key": "gpu", "operator": "Exists"}],
            [{"operator": "Exists"}, {"key": "gpu", "operator": "Exists"}],
        ),
        ("imagePullSecrets", [{"name": "a"}], [{"name": "b"}], [{"name": "a"}, {"name": "b"}]),
        (
            "resourceClaims",
            [{"name": "nic", "resourceClaimName": "one"}],
            [{"name": "nic", "resourceClaimName": "two"}],
            [{"name": "nic", "resourceClaimName": "two"}],
        ),
        ("priorityClassName", "low", "high", "high"),
        ("runtimeClassName", "runc", "nvidia", "nvidia"),
        ("schedulerName", "first", "second", "second"),
        ("sharedMemory", "1Gi", "2Gi", "2Gi"),
        ("cpuLimitRequestRatio", 1, 2, 2),
        ("resources", {"cpu": "1", "memory": "1Gi", "ephemeralStorage": "9Gi"}, {"cpu": "2", "memory": "2Gi"},
         {"cpu": "2", "memory": "2Gi"}),
        ("securityContext", {"runAsUser": 1, "fsGroup": 2}, {"runAsUser": 3}, {"runAsUser": 3}),
        ("securityContext", {"runAsUser": 1}, {}, {}),
    ],
)  # fmt: skip
def test_entries_for_the_same_pods_are_merged_and_the_later_one_wins(
    field: str, first: Any, second: Any, together: Any
) -> None:
    assert merge({field: first}, {"stages": ["train"], field: second}) == {field: together}
    assert merge({field: first}, {"stages": ["serve"], field: second}) == {field: first}
    assert merge({field: first}, {"schedulerName": "gang"}).get(field) == (
        "gang" if field == "schedulerName" else first
    )


def test_an_entry_for_all_pods_without_devices_and_one_for_a_stage_of_them_are_merged_in_their_order() -> (
    None
):
    cpu, own = {"stages": ["cpu"], "schedulerName": "cpu"}, {"stages": ["prepare"], "schedulerName": "own"}
    names = {
        order: pod_of(built("prepare", profile_of(pods=list(entries))))["schedulerName"]
        for order, entries in {"own last": (cpu, own), "cpu last": (own, cpu)}.items()
    }
    assert names == {"own last": "own", "cpu last": "cpu"}


def test_a_profile_without_additions_changes_nothing() -> None:
    assert built("train", profile_of(), 2)["spec"] == built("train", profile_of(pods=[{}]), 2)["spec"]


@pytest.mark.parametrize("stage", [stage for stage, row in STAGES.items() if not row.uses_devices])
def test_pods_without_devices_are_placed_by_the_entries_of_cpu(stage: JobStage) -> None:
    pool = {"nodeSelector": {"pool": "cpu"}, "tolerations": [{"key": "tenant", "operator": "Exists"}]}
    entries = [WITH_DEVICES, {"stages": ["cpu"], **pool}, {"stages": ["train"], "schedulerName": "gang"}]
    pod = pod_of(built(stage, profile_of(**GPU, pods=entries)))
    assert pod["nodeSelector"] == {"pool": "cpu"}
    assert pod["tolerations"] == [{"key": "tenant", "operator": "Exists"}]
    assert "runtimeClassName" not in pod
    assert "schedulerName" not in pod


def test_pods_with_devices_keep_their_own_placement_and_get_that_of_all() -> None:
    everywhere = {"nodeSelector": {"kubernetes.io/arch": "amd64"}, "tolerations": [{"operator": "Exists"}]}
    pod = pod_of(built("train", profile_of(**GPU, pods=[WITH_DEVICES, everywhere]), 1))
    assert pod["nodeSelector"] == {"pool": "gpu", "kubernetes.io/arch": "amd64"}
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists"}, {"operator": "Exists"}]
    assert pod["runtimeClassName"] == "nvidia"


def test_what_the_entries_say_together_is_that_of_the_pod() -> None:
    entry = {
        "annotations": {"a": "1"},
        "imagePullSecrets": [{"name": "mirror"}],
        "schedulerName": "gang",
        "priorityClassName": "high",
    }
    template = shaped_by(entry, {"stages": ["serve"], "annotations": {"a": "3"}})
    assert template["metadata"]["annotations"] == {"a": "1"}
    spec = template["spec"]
    assert spec["imagePullSecrets"] == [{"name": "mirror"}]
    assert (spec["schedulerName"], spec["priorityClassName"]) == ("gang", "high")


def test_variables_reach_every_container_and_replace_a_default() -> None:
    spec = shaped_by({"env": [{"name": "OMP_NUM_THREADS", "value": "8"}]})["spec"]
    expected = {"HOME": "/tmp", "OMP_NUM_THREADS": "8"}
    assert [environment(each) for each in (*spec["containers"], *spec["initContainers"])] == [expected] * 2


def test_isolated_pods_get_no_further_network() -> None:
    network, mesh = {"k8s.v1.cni.cncf.io/networks": "rdma"}, {"linkerd.io/inject": "disabled"}
    uses = profile_of(pods=[{"annotations": {**network, **mesh}}])
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
    gpus = profile_of(**GPU, pods=[{"extendedResources": {"nvidia.com/gpu": "8"}}])
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
    template = shaped_by({"securityContext": given})
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


SIZE: Manifest = {"cpu": "1", "memory": "3Gi"}
CLAIM: Manifest = {"name": "nic", "resourceClaimTemplateName": "rdma"}


@pytest.mark.parametrize(
    "edit",
    [
        {"pods": [{"stages": ["serve"], "resources": SIZE}]},
        {"pods": [{"nodeSelector": {"pool": "gpu"}}]},
        {"pods": [{"tolerations": [{"operator": "Exists"}]}]},
        {"pods": [{"stages": ["serve"], "runtimeClassName": "nvidia"}]},
        {"pods": [{"resourceClaims": [CLAIM]}]},
        {"accelerator": {"resource": "amd.com/gpu"}},
    ],
)
def test_an_edit_of_where_the_pods_of_endpoints_run_starts_a_revision(edit: Manifest) -> None:
    cluster, revision = serving()
    cluster.put(endpoint_profile(**edit))
    cluster.settle()
    assert len(cluster.deployments.keys() - {revision}) == 1


IN_NO_NAME: Manifest = {
    "labels": {"mesh": "off"},
    "annotations": {"linkerd.io/inject": "disabled"},
    "env": [{"name": "X", "value": "1"}],
    "schedulerName": "gang",
    "priorityClassName": "online",
    "affinity": {"podAntiAffinity": {}},
    "topologySpreadConstraints": [{"topologyKey": "rack"}],
    "imagePullSecrets": [{"name": "mirror"}],
    "extendedResources": {"rdma/hca": "1"},
    "securityContext": {},
    "sharedMemory": "1Gi",
    "cpuLimitRequestRatio": 2,
}
"""Fields of an entry that are not part of a revision's name."""


def test_no_other_edit_of_the_profile_starts_a_revision() -> None:
    assert {*IN_NO_NAME, "stages"} == {
        field.alias or name for name, field in PodTemplate.model_fields.items() if name not in HASHED
    }
    cluster, revision = serving()
    elsewhere = {"stages": ["train", "cpu"], "nodeSelector": {"pool": "gpu"}}
    cluster.put(
        endpoint_profile(
            pods=[IN_NO_NAME, elsewhere],
            limits={"runSeconds": 600, "checkpoints": 3},
            accelerator={"maxPerPod": 4, "product": "NVIDIA-L4"},
            serving={"allowedEngineArguments": ["--kv-cache-dtype"]},
            kueue={"queues": {"serve": "serving"}, "workloadPriorityClasses": {"serve": "online"}},
            cost={"pricePerDeviceHour": 2},
            allow={"customCode": True},
        )
    )
    cluster.settle()
    assert list(cluster.deployments) == [revision]
    cluster.edit(restartedAt="2030-01-02T03:04:05Z")
    cluster.settle()
    (new,) = cluster.deployments.keys() - {revision}
    pod = cluster.deployments[new]["spec"]["template"]
    assert pod["metadata"]["labels"]["mesh"] == "off"
    assert (pod["spec"]["schedulerName"], pod["spec"]["priorityClassName"]) == ("gang", "online")
    assert "runAsUser" not in pod["spec"]["securityContext"]
    assert {"name": "X", "value": "1"} in pod["spec"]["containers"][0]["env"]


def test_the_variables_of_the_operator_are_reserved() -> None:
    own = {variable["name"] for variable in engine_environment("/folder")} | {"HOME"}
    assert own <= set(RESERVED_VARIABLES)
