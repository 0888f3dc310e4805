# SPDX-License-Identifier: Apache-2.0
"""The base model of an endpoint: that of its models, or one that it serves without any model."""

from typing import Any

import pytest

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.plan import Manifest
from finetune_trainer.contract.references import SecretMount
from finetune_trainer.contract.serving import DownloadConfig, StoredModel
from tests.unit.operator.endpoints import BASE, EndpointCluster, checkpoint, digest, profile, states
from tests.unit.operator.runobjects import claim
from tests.unit.operator.test_endpoint_targets import configs, serve, served

ROUTER: Manifest = {"name": "router", "follow": {"modelLine": "tickets"}}
WRITER: Manifest = {"name": "writer", "follow": {"modelLine": "letters"}}
OTHER_BASE = digest("c")
HUB: Manifest = {"uri": "hf://google/gemma-3-270m"}
STORED = StoredModel(digest=digest("d"))


def on_other_base(name: str, character: str, **fields: Any) -> Checkpoint:
    """A Checkpoint of another base model than that of `checkpoint`."""
    raw = checkpoint(name, character, **fields).to_dict()
    raw["spec"]["lineage"]["baseModel"] = {"uri": "pvc://models/other", "digest": OTHER_BASE}
    return Checkpoint.model_validate(raw)


def following(*checkpoints: Checkpoint, models: list[Manifest] | None = None) -> EndpointCluster:
    """An endpoint that names no base model."""
    return EndpointCluster(*checkpoints, models=models or [ROUTER], baseModel=None)


def problem(cluster: EndpointCluster) -> tuple[str, str]:
    """Reason and message of what is wrong."""
    return cluster.condition("Stalled") or cluster.condition("Reconciling") or ("", "")


def test_the_base_model_is_that_of_the_champion() -> None:
    cluster = following(checkpoint("first", "1"))
    serve(cluster)
    fetch, _ = configs(cluster)
    assert [(item.artifact.kind, item.artifact.digest) for item in fetch.items] == [
        ("models", BASE),
        ("checkpoints", digest("1")),
    ]
    status = cluster.endpoint.status
    assert (status.base_model_uri, status.base_model_digest) == ("pvc://models/base", BASE)
    assert (cluster.condition("Ready") or ("",))[0] == "Serving"


def test_a_champion_on_another_base_model_is_a_new_revision() -> None:
    cluster = following(checkpoint("first", "1"))
    old = serve(cluster)
    cluster.put(on_other_base("second", "2", promoted=10))
    new = serve(cluster)
    assert states(cluster) == {new: "Live", old: "Retired"}
    assert served(cluster) == {"router": ("second", digest("2"))}
    assert cluster.endpoint.status.base_model_digest == OTHER_BASE


def test_without_a_champion_an_endpoint_keeps_what_it_serves_and_can_be_scaled() -> None:
    cluster = following(checkpoint("first", "1"))
    old = serve(cluster)
    cluster.put(checkpoint("first", "1", promoted=None))
    cluster.edit(replicas=3)
    cluster.settle()
    assert cluster.points_at == old
    assert cluster.deployments[old]["spec"]["replicas"] == 3


def test_the_first_of_several_models_decides_and_the_others_wait() -> None:
    cluster = following(
        checkpoint("first", "1"), on_other_base("letter", "2", modelLine="letters"), models=[ROUTER, WRITER]
    )
    serve(cluster)
    assert served(cluster) == {"router": ("first", digest("1"))}
    reason, message = problem(cluster)
    assert reason == "BaseModelMismatch"
    assert f"checkpoint letter was trained from base model pvc://models/other ({OTHER_BASE})" in message
    assert f"this endpoint serves {BASE}: serve it from another InferenceDeployment" in message
    cluster.put(checkpoint("letter-2", "3", modelLine="letters", promoted=10))
    serve(cluster)
    assert set(served(cluster)) == {"router", "writer"}
    assert (cluster.condition("Ready") or ("",))[0] == "Serving"


def test_no_name_that_is_served_loses_its_weights_to_another_base_model_of_the_first() -> None:
    cluster = following(
        checkpoint("first", "1"), checkpoint("letter", "2", modelLine="letters"), models=[ROUTER, WRITER]
    )
    old = serve(cluster)
    cluster.put(on_other_base("second", "3", promoted=10))
    cluster.settle()
    assert list(cluster.deployments) == [old]
    assert served(cluster) == {"router": ("first", digest("1")), "writer": ("letter", digest("2"))}
    reason, message = problem(cluster)
    assert reason == "BaseModelMismatch"
    assert "checkpoint second was trained from base model pvc://models/other" in message
    cluster.put(on_other_base("letter-2", "4", modelLine="letters", promoted=20))
    serve(cluster)
    assert served(cluster) == {"router": ("second", digest("3")), "writer": ("letter-2", digest("4"))}
    assert cluster.endpoint.status.base_model_digest == OTHER_BASE


def test_an_edit_of_the_base_model_serves_no_adapter_of_the_one_before() -> None:
    cluster = EndpointCluster(
        checkpoint("first", "1"), checkpoint("letter", "2", modelLine="letters"), models=[ROUTER, WRITER]
    )
    serve(cluster)
    cluster.put(on_other_base("second", "3", promoted=10))
    cluster.edit(baseModel={"uri": "pvc://models/other"})
    serve(cluster)
    assert served(cluster) == {"router": ("second", digest("3"))}
    assert problem(cluster)[0] == "BaseModelMismatch"


def alone(base: Manifest | None = None, **spec: Any) -> EndpointCluster:
    """An endpoint of a base model after its first passes."""
    cluster = EndpointCluster(models=[], baseModel=base or HUB, **spec)
    cluster.settle()
    return cluster


def stored(cluster: EndpointCluster, found: StoredModel = STORED) -> EndpointCluster:
    cluster.cluster.end("download", found.to_json())
    cluster.settle()
    return cluster


def download_config(cluster: EndpointCluster) -> DownloadConfig:
    config = cluster.cluster.config("download")
    assert isinstance(config, DownloadConfig)
    return config


def test_a_base_model_is_put_into_the_store_of_the_profile_before_a_pod_starts() -> None:
    secret = {"credentialsSecretRef": {"name": "hub"}}
    cluster = alone({**HUB, "revision": "v1", **secret})
    assert not cluster.deployments
    reason, message = problem(cluster)
    assert reason == "StoringBaseModel"
    assert "puts base model hf://google/gemma-3-270m@v1 into the store" in message
    config = download_config(cluster)
    assert (config.base_model_uri, config.base_model_revision) == ("hf://google/gemma-3-270m", "v1")
    assert (config.store.uri, config.base_model_path) == ("pvc://artifacts", None)
    assert config.base_model_credentials == SecretMount(
        name="hub", path="/var/run/finetune/credentials/base-model"
    )
    pod = cluster.cluster.stage_job("download")["spec"]["template"]["spec"]
    assert "base-model-credentials" in {volume["name"] for volume in pod["volumes"]}


def test_a_base_model_is_served_under_the_name_of_the_endpoint() -> None:
    cluster = stored(alone())
    fetch, engine = configs(cluster)
    (item,) = fetch.items
    assert (item.artifact.kind, item.artifact.digest, item.folder) == ("models", STORED.digest, "desk")
    assert [(model.name, model.type) for model in engine.models] == [("desk", "Full")]
    assert engine.base_folder == "desk"
    serve(cluster)
    status = cluster.endpoint.status
    assert served(cluster) == {"desk": (None, STORED.digest)}
    assert (status.base_model_uri, status.base_model_digest) == (HUB["uri"], STORED.digest)
    assert status.display is not None
    assert status.display.models == "desk"
    assert "serving desk = hf://google/gemma-3-270m at" in (cluster.condition("Ready") or ("", ""))[1]


def test_a_base_model_on_a_claim_is_read_from_it() -> None:
    cluster = alone({"uri": "pvc://models/gemma"})
    assert download_config(cluster).base_model_path == "/mnt/base-model/gemma"


@pytest.mark.parametrize("has_job", [True, False])
def test_what_is_served_is_kept_when_the_source_has_changed(has_job: bool) -> None:
    cluster = stored(alone())
    revision = serve(cluster)
    for kind in ("Pod", "Job") if not has_job else ("Pod",):
        for name in list(cluster.cluster.of(kind)):
            cluster.cluster.remove(kind, name)
    cluster.wait(3600)
    cluster.settle()
    assert list(cluster.deployments) == [revision]
    assert cluster.cluster.has_stage_job("download") == has_job


def test_another_source_is_another_revision_and_the_old_one_serves_until_it_is_ready() -> None:
    cluster = stored(alone())
    old = serve(cluster)
    cluster.edit(baseModel={**HUB, "revision": "v2"})
    cluster.settle()
    assert cluster.points_at == old
    assert problem(cluster)[0] == "StoringBaseModel"
    assert len(cluster.cluster.of("Job")) == 1, "the Job of the first source is deleted"
    stored(cluster, StoredModel(digest=digest("e")))
    new = serve(cluster)
    assert states(cluster) == {new: "Live", old: "Retired"}
    assert cluster.endpoint.status.base_model_uri == "hf://google/gemma-3-270m@v2"


def test_another_store_of_the_profile_gets_the_base_model_before_a_pod_reads_it_there() -> None:
    cluster = stored(alone())
    old = serve(cluster)
    cluster.put(profile(store={"uri": "pvc://moved"}))
    cluster.settle()
    assert download_config(cluster).store.uri == "pvc://moved"
    assert list(cluster.deployments) == [old]
    stored(cluster)
    new = serve(cluster)
    assert new != old
    assert configs(cluster)[0].store.uri == "pvc://moved"


def test_a_long_canary_of_a_base_model_needs_its_job_no_more() -> None:
    strategy = {"type": "Canary", "canary": {"steps": [{"setWeight": 50}, {"pause": {}}]}}
    cluster = stored(alone(replicas=2, strategy=strategy))
    old = serve(cluster)
    cluster.edit(baseModel={**HUB, "revision": "v2"})
    cluster.settle()
    stored(cluster, StoredModel(digest=digest("e")))
    (new,) = set(cluster.deployments) - {old}
    for name in (new, old, new):
        cluster.make_ready(name)
        cluster.settle()
    for kind in ("Pod", "Job"):
        for name in list(cluster.cluster.of(kind)):
            cluster.cluster.remove(kind, name)
    cluster.settle()
    assert states(cluster) == {new: "Canary", old: "Live"}
    assert not cluster.cluster.has_stage_job("download")
    assert cluster.endpoint.status.base_model_uri == HUB["uri"]


def test_models_take_the_place_of_a_base_model_that_was_served_alone() -> None:
    cluster = stored(alone())
    serve(cluster)
    cluster.put(checkpoint("first", "1"))
    cluster.edit(models=[ROUTER], baseModel=None)
    serve(cluster)
    assert served(cluster) == {"router": ("first", digest("1"))}
    assert not cluster.cluster.has_stage_job("download")


def test_a_required_digest_is_that_of_the_job_and_of_the_revision() -> None:
    cluster = alone({**HUB, "digest": STORED.digest})
    assert download_config(cluster).base_model_digest == STORED.digest
    stored(cluster)
    serve(cluster)
    cluster.edit(baseModel={**HUB, "digest": digest("e")})
    cluster.settle()
    assert download_config(cluster).base_model_digest == digest("e")


def test_a_download_that_fails_is_reported_and_tried_again() -> None:
    cluster = alone()
    cluster.cluster.end(
        "download", "AccessDenied: baseModel hf://google/gemma-3-270m: status 401", exit_code=10
    )
    cluster.reconcile()
    reason, message = problem(cluster)
    assert reason == "BaseModelNotStored"
    assert "status 401" in message
    assert "the operator retries every 5 minutes" in message
    cluster.wait(301)
    cluster.settle()
    assert problem(cluster)[0] == "StoringBaseModel"


def test_a_result_that_is_lost_with_its_pod_is_found_by_another_job() -> None:
    cluster = stored(alone(replicas=0))
    for name in list(cluster.cluster.of("Pod")):
        cluster.cluster.remove("Pod", name)
    cluster.wait(3600)
    cluster.settle()
    assert problem(cluster)[0] == "StoringBaseModel"


def test_a_missing_claim_of_the_base_model_is_named() -> None:
    cluster = alone({"uri": "pvc://nowhere/gemma"})
    reason, message = problem(cluster)
    assert reason == "BaseModelNotFound"
    assert (
        "PersistentVolumeClaim nowhere of spec.baseModel.uri (pvc://nowhere/gemma) does not exist" in message
    )
    cluster.put(claim("nowhere", "ReadWriteMany"))
    cluster.settle()
    assert problem(cluster)[0] == "StoringBaseModel"


def test_a_profile_without_a_store_is_named() -> None:
    cluster = EndpointCluster(models=[], baseModel=HUB)
    cluster.put(profile(store=None))
    cluster.settle()
    assert problem(cluster)[0] == "StoreMissing"


def test_a_base_model_alone_is_read_in_place_from_the_model_cache() -> None:
    cluster = EndpointCluster(models=[], baseModel=HUB)
    cluster.put(claim("cache", "ReadWriteMany"), profile(serving={"modelCache": {"claim": "cache"}}))
    cluster.settle()
    stored(cluster)
    config = cluster.cluster.config("fill")
    assert (config.artifact.kind, config.artifact.digest) == ("models", STORED.digest)
    cluster.cluster.end("fill", "")
    cluster.settle()
    (item,) = configs(cluster)[0].items
    assert item.in_cache


def test_vllm_serves_a_base_model_alone_without_adapters() -> None:
    cluster = EndpointCluster(models=[], baseModel=HUB)
    cluster.put(profile(serving={"engine": "VLLM"}, images={"engine": "registry.example/vllm:1"}))
    cluster.settle()
    stored(cluster)
    (deployment,) = cluster.deployments.values()
    command = deployment["spec"]["template"]["spec"]["containers"][0]["command"]
    assert "--served-model-name=desk" in command
    assert "--enable-lora" not in command


def test_an_endpoint_without_models_and_base_model_says_what_to_set() -> None:
    cluster = EndpointCluster(models=[], baseModel=None)
    cluster.settle()
    assert cluster.condition("Stalled") == (
        "InvalidSpec",
        "the endpoint has neither spec.models nor spec.baseModel: set one",
    )
