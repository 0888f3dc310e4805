# SPDX-License-Identifier: Apache-2.0
"""Endpoints whose ComputeProfile has a model cache: the Job that fills it, and pods that read in place."""

from typing import Any

import pytest

from finetune_operator.api.labels import REVISION
from finetune_operator.plan import Manifest
from finetune_trainer.contract.configs import CONFIG_ADAPTER
from finetune_trainer.contract.serving import FetchConfig, FillConfig
from tests.unit.operator.endpoints import BASE, EndpointCluster, checkpoint, digest, profile
from tests.unit.operator.runobjects import claim

CACHED = {"serving": {"modelCache": {"claim": "cache"}}}
MOUNT = {"name": "model-cache", "mountPath": "/mnt/model-cache", "readOnly": True}


def cached(*checkpoints: Any, modes: str = "ReadWriteMany", **spec: Any) -> EndpointCluster:
    """An endpoint after its first passes; its profile has a model cache."""
    cluster = EndpointCluster(*(checkpoints or (checkpoint("first", "1"),)))
    cluster.put(claim("cache", modes), profile(**CACHED, **spec))
    cluster.settle()
    return cluster


def fill_config(cluster: EndpointCluster) -> FillConfig:
    config = cluster.cluster.config("fill")
    assert isinstance(config, FillConfig)
    return config


def filled(cluster: EndpointCluster) -> EndpointCluster:
    cluster.cluster.end("fill", "")
    cluster.settle()
    return cluster


def pod_of(cluster: EndpointCluster) -> Manifest:
    (deployment,) = cluster.deployments.values()
    spec: Manifest = deployment["spec"]["template"]["spec"]
    return spec


def fetch_config(pod: Manifest) -> FetchConfig:
    (variable,) = (each for each in pod["initContainers"][0]["env"] if each["name"] == "FINETUNE_CONFIG")
    config = CONFIG_ADAPTER.validate_json(variable["value"])
    assert isinstance(config, FetchConfig)
    return config


def test_no_pod_starts_before_the_model_is_in_the_cache() -> None:
    cluster = cached()

    assert not cluster.deployments
    assert cluster.condition("Reconciling")[0] == "FillingModelCache"  # type: ignore[index]
    config = fill_config(cluster)
    assert (config.artifact.kind, config.artifact.digest) == ("models", BASE)
    assert (config.store.uri, config.cache.uri) == ("pvc://artifacts", "pvc://cache")
    pod = cluster.cluster.stage_job("fill")["spec"]["template"]["spec"]
    claims = {each["name"]: each.get("persistentVolumeClaim") for each in pod["volumes"]}
    assert claims["model-cache"] == {"claimName": "cache"}
    assert claims["store"] == {"claimName": "artifacts", "readOnly": True}

    filled(cluster)
    assert len(cluster.deployments) == 1


def test_pods_mount_the_cache_read_only_and_copy_adapters_only() -> None:
    pod = pod_of(filled(cached()))

    assert {"name": "model-cache", "persistentVolumeClaim": {"claimName": "cache", "readOnly": True}} in pod[
        "volumes"
    ]
    for container in (*pod["initContainers"], *pod["containers"]):
        assert MOUNT in container["volumeMounts"]
    config = fetch_config(pod)
    assert [(item.folder, item.in_cache) for item in config.items] == [("base", True), ("router", False)]
    assert config.cache is not None
    assert (config.cache.uri, config.cache.path) == ("pvc://cache", "/mnt/model-cache")


def test_a_fully_fine_tuned_model_is_read_in_place() -> None:
    cluster = cached(checkpoint("first", "1", type="Full"))

    artifact = fill_config(cluster).artifact
    assert (artifact.kind, artifact.digest) == ("checkpoints", digest("1"))
    (item,) = fetch_config(pod_of(filled(cluster))).items
    assert (item.folder, item.in_cache) == ("router", True)


def test_without_a_cache_pods_are_as_before() -> None:
    cluster = EndpointCluster(checkpoint("first", "1"))
    cluster.settle()

    pod = pod_of(cluster)
    assert "model-cache" not in str(pod)
    assert fetch_config(pod).to_dict()["items"][0] == {
        "artifact": {"kind": "models", "digest": BASE},
        "folder": "base",
    }


def test_a_cache_starts_a_new_revision_and_the_old_one_serves_while_it_is_filled() -> None:
    cluster = EndpointCluster(checkpoint("first", "1"))
    cluster.settle()
    (old,) = cluster.deployments
    cluster.make_ready(old)
    cluster.settle()

    cluster.put(claim("cache", "ReadWriteMany"), profile(**CACHED))
    cluster.settle()

    assert set(cluster.deployments) == {old}
    assert cluster.points_at == old
    filled(cluster)
    (new,) = set(cluster.deployments) - {old}
    cluster.make_ready(new)
    cluster.settle()
    assert cluster.points_at == new


@pytest.mark.parametrize(
    ("modes", "spec", "reason"),
    [
        ("ReadWriteOnce", {}, "ModelCacheNotShareable"),
        ("ReadWriteMany", {"serving": {"modelCache": {"claim": "absent"}}}, "ModelCacheNotFound"),
        ("ReadWriteMany", {"serving": {"modelCache": {"claim": "artifacts"}}}, "ProfileInvalid"),
    ],
)
def test_a_cache_that_cannot_be_used_is_named(modes: str, spec: Manifest, reason: str) -> None:
    cluster = EndpointCluster(checkpoint("first", "1"))
    cluster.put(claim("cache", modes), profile(**{**CACHED, **spec}))
    cluster.settle()

    condition = cluster.condition("Reconciling")
    assert condition is not None
    assert condition[0] == reason
    assert "modelCache" in condition[1]
    assert not cluster.deployments
    assert not cluster.cluster.of("Job")


def test_a_claim_for_one_node_is_enough_where_all_pods_run_on_it() -> None:
    cluster = cached(modes="ReadWriteOnce", store={"uri": "pvc://artifacts", "accessMode": "ReadWriteOnce"})

    assert cluster.cluster.has_stage_job("fill")


def test_a_copy_that_fails_is_reported_and_tried_again() -> None:
    cluster = cached()
    first = cluster.cluster.stage_job("fill")["metadata"]["uid"]
    cluster.cluster.end("fill", "StoreUnavailable: no space left", exit_code=12)
    plan = cluster.reconcile()

    reason, message = cluster.condition("Reconciling") or ("", "")
    assert reason == "ModelCacheNotFilled"
    assert "StoreUnavailable: no space left" in message
    assert plan.requeue_after == pytest.approx(300)

    cluster.wait(300)
    cluster.settle()
    assert cluster.cluster.stage_job("fill")["metadata"]["uid"] != first
    assert filled(cluster).deployments


def test_a_new_claim_of_the_same_name_is_filled_again() -> None:
    cluster = filled(cached())
    (before,) = cluster.cluster.of("Job")
    cluster.cluster.remove("PersistentVolumeClaim", "cache")
    cluster.put(claim("cache", "ReadWriteMany"))
    cluster.settle()

    (after,) = cluster.cluster.of("Job")
    assert after != before
    assert len(cluster.deployments) == 1


def test_a_job_that_a_person_deletes_is_created_again_and_restarts_no_pod() -> None:
    cluster = filled(cached())
    deployments = dict(cluster.deployments)
    (job,) = cluster.cluster.of("Job")
    cluster.cluster.remove("Job", job)
    cluster.settle()

    assert cluster.cluster.has_stage_job("fill")
    assert dict(cluster.deployments) == deployments


@pytest.mark.parametrize(
    ("held", "reason"),
    [({"replicas": 0}, "ScaledToZero"), ({"strategy": {"paused": True}}, "Paused")],
)
def test_no_model_is_copied_for_a_revision_that_may_not_start(held: Manifest, reason: str) -> None:
    cluster = EndpointCluster(checkpoint("first", "1"), **held)
    cluster.put(claim("cache", "ReadWriteMany"), profile(**CACHED))
    cluster.settle()

    assert not cluster.cluster.of("Job")
    assert reason in {each.reason for each in cluster.endpoint.status.conditions}

    cluster.edit(replicas=1, strategy={})
    cluster.settle()
    assert cluster.cluster.has_stage_job("fill")


def test_a_deleted_job_is_created_again_for_pods_that_serve_only() -> None:
    cluster = filled(cached())
    (revision,) = cluster.deployments
    cluster.make_ready(revision)
    cluster.settle()
    cluster.edit(replicas=0)
    cluster.settle()
    for job in list(cluster.cluster.of("Job")):
        cluster.cluster.remove("Job", job)
    cluster.settle()
    assert not cluster.cluster.of("Job")

    cluster.edit(replicas=1, strategy={"paused": True})
    cluster.settle()
    assert cluster.cluster.has_stage_job("fill")


def test_the_pod_of_the_job_is_never_ready_and_does_not_delay_a_recreated_revision() -> None:
    cluster = cached()
    pod = cluster.cluster.pod("fill", {"running": {}})

    assert pod["spec"]["readinessGates"] == [{"conditionType": "finetune.dev/serves"}]
    assert REVISION not in pod["metadata"]["labels"]


def test_the_jobs_of_models_that_are_not_wanted_are_deleted() -> None:
    cluster = filled(cached(checkpoint("first", "1", type="Full")))
    (revision,) = cluster.deployments
    cluster.make_ready(revision)
    cluster.settle()
    cluster.put(checkpoint("second", "2", type="Full", promoted=5))
    cluster.settle()

    assert fill_config(cluster).artifact.digest == digest("2")
    assert len(cluster.cluster.of("Job")) == 1
