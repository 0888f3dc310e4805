# SPDX-License-Identifier: Apache-2.0
"""Stage Jobs: rights, mounts and resources of their pods."""

from typing import Any

import pytest

from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.api.dataset import DataPreparation, RowSource
from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.api.meta import SecretReference
from finetune_operator.manifests.configs import collect_config, prepare_config
from finetune_operator.manifests.jobs import (
    JobInputs,
    build_stage_job,
    container_resources,
    pod_failure_policy,
)
from finetune_operator.manifests.labels import NONCE, TEMPLATE_DIGEST
from finetune_operator.manifests.pod_sizing import pod_sizing
from finetune_operator.manifests.trainer_config import StageInputs
from finetune_operator.plan import Manifest
from finetune_operator.stage_table import JobStage
from finetune_trainer.contract.configs import PrepareConfig, StageConfig
from finetune_trainer.contract.vocabulary import ExitCode
from tests.unit.operator.runobjects import finetunejob, profile

STAGES: tuple[JobStage, ...] = ("prepare", "preflight", "train", "evaluate", "collect")


def profile_of(**spec: Any) -> ComputeProfile:
    return ComputeProfile.model_validate(profile(**spec))


def built(
    stage: JobStage = "train",
    uses: ComputeProfile | None = None,
    devices: int = 0,
    *,
    nonce_key: str = "0f",
    source: RowSource | None = None,
    store_secret: str | None = None,
) -> Manifest:
    """A Job that collects a result; with a source, one that prepares its rows."""
    manifest = finetunejob()
    manifest["metadata"]["namespace"] = "team"
    job = FineTuneJob.model_validate(manifest)
    inputs = StageInputs(job, job.uid, "pvc://artifacts/team", None, store_credentials=store_secret)
    config: StageConfig = collect_config(inputs, "train")
    if source is not None:
        config = prepare_config(inputs, {"sources[0]": source}, DataPreparation())
    return build_stage_job(
        job,
        "tickets-v1-x",
        stage,
        config,
        JobInputs(
            image="registry.example/trainer:1",
            image_pull_policy="IfNotPresent",
            nonce_key=nonce_key,
            profile=uses,
            devices=devices,
        ),
    )


def pod_of(job: Manifest) -> Manifest:
    pod: Manifest = job["spec"]["template"]["spec"]
    return pod


@pytest.mark.parametrize("stage", STAGES)
def test_every_pod_is_restricted_and_holds_no_api_token(stage: JobStage) -> None:
    pod = pod_of(built(stage))
    container = pod["containers"][0]
    assert pod["automountServiceAccountToken"] is False
    assert pod["serviceAccountName"] == "finetune-runner"
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert "report-token" not in [volume["name"] for volume in pod["volumes"]]


def test_a_restart_of_the_operator_changes_no_digest_by_which_a_waiting_job_is_created_again() -> None:
    """Each process has another nonce key. An edit of the profile compares with Jobs of the one before."""
    old, new = (built(nonce_key=key * 64)["metadata"]["annotations"] for key in "ab")
    assert old[NONCE] != new[NONCE]
    assert old[TEMPLATE_DIGEST] == new[TEMPLATE_DIGEST]
    assert old[TEMPLATE_DIGEST] != built(devices=1)["metadata"]["annotations"][TEMPLATE_DIGEST]


@pytest.mark.parametrize("stage", STAGES)
def test_suspend_and_parallelism_are_left_to_the_queue(stage: JobStage) -> None:
    spec = built(stage)["spec"]
    assert {"suspend", "parallelism", "completions", "activeDeadlineSeconds"}.isdisjoint(spec)


def test_an_eviction_comes_before_any_exit_code() -> None:
    rules = pod_failure_policy("prepare")["rules"]
    assert [rule["action"] for rule in rules] == ["Ignore", "FailJob", "Ignore"]
    assert "onPodConditions" in rules[0]
    named = [code for rule in rules[1:] for code in rule["onExitCodes"]["values"]]
    assert {ExitCode.OK, ExitCode.INTERNAL, ExitCode.STORE_UNAVAILABLE}.isdisjoint(named)


def test_the_exit_code_of_an_injected_container_decides_nothing() -> None:
    rules = pod_failure_policy("prepare")["rules"]
    assert [rule["onExitCodes"]["containerName"] for rule in rules[1:]] == ["trainer", "trainer"]


@pytest.mark.parametrize(
    ("stage", "spec", "devices", "requests", "limits"),
    [
        ("prepare", {}, 0, {"cpu": "100m", "memory": "1536Mi"}, {"memory": "1536Mi"}),
        ("train", {}, 2, {"cpu": "2", "memory": "4Gi"}, {"memory": "4Gi"}),
        (
            "train",
            {"pods": [{"stages": ["train"], "resources": {"cpu": "500m", "memory": "2Gi"}}]},
            2,
            {"cpu": "500m", "memory": "2Gi"},
            {"memory": "2Gi"},
        ),
        (
            "train",
            {"accelerator": {"resource": "nvidia.com/gpu"}},
            2,
            {"cpu": "1", "memory": "6Gi"},
            {"memory": "6Gi", "nvidia.com/gpu": "2"},
        ),
        (
            "preflight",
            {"accelerator": {"resource": "nvidia.com/gpu"}},
            0,
            {"cpu": "500m", "memory": "3Gi"},
            {"memory": "3Gi"},
        ),
    ],
)
def test_a_pod_asks_for_its_stages_resources(
    stage: JobStage, spec: dict[str, Any], devices: int, requests: Manifest, limits: Manifest
) -> None:
    profile = profile_of(**spec)
    found = container_resources(pod_sizing(stage, profile, devices, None), profile, devices)
    assert found == {"requests": requests, "limits": limits}


def test_only_pods_with_devices_are_bound_to_the_profiles_nodes() -> None:
    gpus = {"nodeSelector": {"gpu": "a100"}, "tolerations": [{"key": "gpu", "operator": "Exists"}]}
    uses = profile_of(pods=[{"stages": ["train", "evaluate", "serve"], **gpus}])
    assert pod_of(built("train", uses, devices=1))["nodeSelector"] == {"gpu": "a100"}
    preflight = pod_of(built("preflight", uses))
    assert {"nodeSelector", "tolerations"}.isdisjoint(preflight)


@pytest.mark.parametrize(
    ("spec", "devices", "threads"),
    [
        ({}, 3, ["3"]),
        ({"pods": [{"stages": ["train"], "resources": {"cpu": "1500m", "memory": "4Gi"}}]}, 1, ["2"]),
        ({"pods": [{"stages": ["train"], "resources": {"cpu": "4", "memory": "4Gi"}}]}, 1, ["4"]),
        ({"pods": [{"stages": ["train"], "resources": {"cpu": "100m", "memory": "4Gi"}}]}, 1, ["1"]),
        ({"pods": [{"stages": ["train"], "resources": {"cpu": "1k", "memory": "4Gi"}}]}, 2, ["2"]),
        ({"accelerator": {"resource": "nvidia.com/gpu"}}, 3, []),
    ],
)
def test_threads_follow_devices_and_cpu_request_where_a_device_is_a_core(
    spec: dict[str, Any], devices: int, threads: list[str]
) -> None:
    (container,) = pod_of(built("train", profile_of(**spec), devices=devices))["containers"]
    assert [each["value"] for each in container["env"] if each["name"] == "OMP_NUM_THREADS"] == threads


def test_a_source_in_the_stores_own_claim_shares_its_volume_read_only() -> None:
    pod = pod_of(built("prepare", source=RowSource(uri="pvc://artifacts/rows.csv")))
    assert [volume["name"] for volume in pod["volumes"]] == ["store", "scratch"]
    assert {"name": "store", "mountPath": "/mnt/sources/0", "readOnly": True} in pod["containers"][0][
        "volumeMounts"
    ]


def test_a_config_map_is_optional_so_that_the_pod_reports_a_missing_one() -> None:
    pod = pod_of(built("prepare", source=RowSource(uri="configmap://tickets/rows.jsonl")))
    assert {"name": "source-0", "configMap": {"name": "tickets", "optional": True}} in pod["volumes"]


def test_a_pod_mounts_the_secrets_that_its_config_names_where_the_config_says() -> None:
    secret = SecretReference(name="reader")
    source = RowSource(uri="s3://rows/tickets.jsonl", credentials_secret_ref=secret)

    job = built("prepare", source=source, store_secret="writer")

    pod = pod_of(job)
    mounted = {each["name"]: each["mountPath"] for each in pod["containers"][0]["volumeMounts"]}
    secrets = {each["name"]: each["secret"]["secretName"] for each in pod["volumes"] if "secret" in each}
    assert secrets == {"store-credentials": "writer", "source-0-credentials": "reader"}
    config = PrepareConfig.model_validate_json(pod["containers"][0]["env"][0]["value"])
    assert config.store.credentials is not None
    assert config.sources[0].credentials is not None
    assert mounted["store-credentials"] == config.store.credentials.path
    assert mounted["source-0-credentials"] == config.sources[0].credentials.path


def test_the_stores_folder_is_a_path_and_no_sub_path_of_the_mount() -> None:
    container = pod_of(built())["containers"][0]
    assert '"path":"/mnt/store/team"' in container["env"][0]["value"]
    assert all("subPath" not in mount for mount in container["volumeMounts"])


def disk_limits(job: Manifest) -> dict[str, str | None]:
    """Size limits of the volumes on the node's disk."""
    volumes = [each for each in pod_of(job)["volumes"] if "emptyDir" in each]
    return {each["name"]: each["emptyDir"].get("sizeLimit") for each in volumes}


@pytest.mark.parametrize("stage", ["prepare", "train", "evaluate"])
def test_temporary_files_cannot_fill_the_disk_of_a_node(stage: JobStage) -> None:
    given = {"cpu": "1", "memory": "1Gi", "ephemeralStorage": "20Gi"}
    assert disk_limits(built(stage))["scratch"] == "100Gi"
    limited = built(stage, profile_of(pods=[{"stages": [stage], "resources": given}]))
    assert disk_limits(limited)["scratch"] == "20Gi"
