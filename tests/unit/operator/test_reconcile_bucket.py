# SPDX-License-Identifier: Apache-2.0
"""A store in a bucket: no claim, a folder in its place, and the Secret that opens it wherever it is read."""

import json
from typing import Any, Final

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.api.inference_deployment import InferenceDeployment
from finetune_operator.manifests.endpoint import build_deployment
from finetune_operator.manifests.labels import RECORDED_AT, STORE, STORE_CREDENTIALS
from finetune_operator.manifests.revision import build_revision
from finetune_operator.manifests.weights import WeightsReference
from finetune_operator.plan import Manifest
from finetune_trainer.contract.environment import CREDENTIALS_MOUNT, STORE_MOUNT
from finetune_trainer.contract.serving import FetchConfig
from tests.unit.operator.memorycluster import MemoryCluster
from tests.unit.operator.runobjects import (
    CHECKPOINT,
    DATASET,
    JOB,
    VERSION,
    claim,
    dataset,
    evaluated,
    finetunejob,
    preflighted,
    prepared,
    profile,
    sized,
    trained,
)

URI: Final = "s3://artifacts/team"
STORE_IN_BUCKET: Final = {"uri": URI, "credentialsSecretRef": {"name": "artifacts-s3"}}


def cluster_of(**job: Any) -> MemoryCluster:
    """The profile's store is the bucket; the only claim is that of the base model."""
    cluster = MemoryCluster(profile(store=STORE_IN_BUCKET), claim("models"), dataset(), finetunejob(**job))
    cluster.settle()
    return cluster


def through(cluster: MemoryCluster, last: str) -> MemoryCluster:
    for stage, result in (
        ("prepare", prepared()),
        ("preflight", preflighted()),
        ("train", trained()),
        ("evaluate", evaluated()),
    ):
        if stage == last:
            break
        cluster.succeed(stage, result, after=5)
        cluster.settle()
    return cluster


def volumes_of(pod: Manifest, container: Manifest) -> dict[str, Manifest]:
    """The volume behind each path of a container."""
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    return {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}


def test_each_stage_has_a_folder_in_the_stores_place_and_the_secret_that_opens_the_bucket() -> None:
    for stage in ("prepare", "preflight", "train", "evaluate"):
        job = through(cluster_of(), stage).stage_job(stage)
        pod = job["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        (config,) = (
            json.loads(entry["value"]) for entry in container["env"] if entry["name"] == "FINETUNE_CONFIG"
        )
        volumes = volumes_of(pod, container)
        assert volumes[STORE_MOUNT]["emptyDir"] == {}
        secret = f"{CREDENTIALS_MOUNT}/store"
        assert config["store"] == {"uri": URI, "credentials": {"name": "artifacts-s3", "path": secret}}
        assert volumes[secret]["secret"] == {"secretName": "artifacts-s3", "optional": True}
        assert not any(
            volume.get("persistentVolumeClaim", {}).get("claimName") == "artifacts"
            for volume in volumes.values()
        )


def test_records_name_the_bucket_and_the_secret_that_opens_it() -> None:
    cluster = through(cluster_of(), "")
    version, checkpoint = (
        cluster.objects[key] for key in (("DatasetVersion", VERSION), ("Checkpoint", CHECKPOINT))
    )
    assert version["metadata"]["annotations"] == {STORE: URI, STORE_CREDENTIALS: "artifacts-s3"}
    assert version["status"]["locations"] == [URI]
    annotations = checkpoint["metadata"]["annotations"]
    assert annotations.keys() == {RECORDED_AT, STORE_CREDENTIALS}
    assert annotations[STORE_CREDENTIALS] == "artifacts-s3"
    assert checkpoint["spec"]["uri"] == f"{URI}/checkpoints/{'c' * 64}"


def test_a_run_keeps_the_secret_of_the_store_that_it_began_with() -> None:
    cluster = through(cluster_of(), "preflight")
    cluster.change("ComputeProfile", "cpu", store={"uri": "s3://elsewhere"})
    cluster.succeed("preflight", preflighted(), after=5)
    cluster.settle()
    config = cluster.config("train")
    assert (config.store.uri, config.store.credentials.name) == (URI, "artifacts-s3")


def test_a_run_waits_for_no_claim_of_a_bucket() -> None:
    cluster = MemoryCluster(
        profile(store=None),
        claim("models"),
        dataset(store={"uri": "gs://rows"}),
        finetunejob(store={"uri": "gs://rows"}),
    )
    cluster.settle()
    through(cluster, "preflight")
    assert cluster.has_stage_job("preflight")
    assert cluster.job(JOB).status.resolved.store_credentials is None


def test_rows_in_another_store_are_not_read_over_the_network() -> None:
    """A run and its Dataset agree on the store, whatever its kind."""
    cluster = MemoryCluster(
        profile(), claim("artifacts"), claim("models"), dataset(store=STORE_IN_BUCKET), finetunejob()
    )
    cluster.settle()
    cluster.succeed("prepare", prepared(), after=5)
    cluster.settle()
    condition = cluster.condition("FineTuneJob", JOB, "Reconciling")
    assert condition is not None
    assert f"set spec.store.uri of Dataset {DATASET} to pvc://artifacts" in condition["message"]


def test_a_serving_pod_opens_the_bucket_in_its_init_container_only() -> None:
    cluster = through(cluster_of(), "")
    checkpoint = cluster.get("Checkpoint", CHECKPOINT)
    offered = cluster.get("ComputeProfile", "cpu")
    assert isinstance(checkpoint, Checkpoint)
    assert isinstance(offered, ComputeProfile)
    endpoint = InferenceDeployment.model_validate(
        {
            "metadata": {"name": "router", "namespace": "team", "uid": "1"},
            "spec": {
                "baseModel": {"uri": "pvc://models/gemma"},
                "models": [{"name": "router", "pin": {"checkpoint": CHECKPOINT}}],
            },
        }
    )
    weights = WeightsReference.of(checkpoint)
    models = (("router", weights),)
    revision = build_revision(endpoint, "sha256:" + "b" * 64, models, offered, weights.store)

    pod = build_deployment(endpoint, revision, "trainer:dev", "Always")["spec"]["template"]["spec"]

    (fetch,), (engine,) = pod["initContainers"], pod["containers"]
    config = FetchConfig.model_validate_json(fetch["env"][0]["value"])
    assert config.store.uri == URI
    assert config.store.credentials is not None
    secret = config.store.credentials.path
    assert volumes_of(pod, fetch)[secret]["secret"]["secretName"] == "artifacts-s3"
    assert secret not in volumes_of(pod, engine)
    assert "store" not in {volume["name"] for volume in pod["volumes"]}


def test_a_profile_can_reserve_room_on_the_nodes_disk() -> None:
    pods = sized(train={"cpu": "1", "memory": "4Gi", "ephemeralStorage": "50Gi"})
    cluster = MemoryCluster(
        profile(store=STORE_IN_BUCKET, pods=pods), claim("models"), dataset(), finetunejob()
    )
    cluster.settle()
    job = through(cluster, "train").stage_job("train")
    wanted = job["spec"]["template"]["spec"]["containers"][0]["resources"]
    assert wanted["requests"]["ephemeral-storage"] == wanted["limits"]["ephemeral-storage"] == "50Gi"
