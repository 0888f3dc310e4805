# SPDX-License-Identifier: Apache-2.0
"""Models of endpoints that are merged into their base model: the Job, the pods, and what is refused."""

from typing import Any

import pytest

from finetune_operator.plan import Manifest
from finetune_operator.reconcile.inferencedeployment.revision.targets import resolve
from finetune_trainer.contract.configs import CONFIG_ADAPTER
from finetune_trainer.contract.serving import FetchConfig, FillConfig, MergeConfig, MergedWeights
from tests.unit.operator.endpoints import BASE, EndpointCluster, checkpoint, digest, profile
from tests.unit.operator.runobjects import claim

MERGED = MergedWeights(weights=digest("e"), probe=digest("f"))
MODELS = [{"name": "router", "follow": {"modelLine": "tickets"}, "merge": True}]
VLLM = {"serving": {"engine": "VLLM"}, "images": {"engine": "registry.example/vllm:1"}}
DORA = {"adapter": {"r": 8, "dora": True}}


def merging(
    *others: Any, models: Any = MODELS, adapter: Manifest | None = None, **spec: Any
) -> EndpointCluster:
    """An endpoint after its first passes, with a model that is merged."""
    first = checkpoint("first", "1", probe=digest("9"))
    if adapter is not None:
        raw = first.to_dict()
        raw["spec"]["lineage"].update(adapter)
        first = type(first).model_validate(raw)
    cluster = EndpointCluster(first, *others, models=models)
    cluster.put(profile(**spec))
    cluster.settle()
    return cluster


def merged(cluster: EndpointCluster) -> EndpointCluster:
    cluster.cluster.end("merge", MERGED.to_json())
    cluster.settle()
    return cluster


def fetch_config(cluster: EndpointCluster) -> FetchConfig:
    (deployment,) = cluster.deployments.values()
    container = deployment["spec"]["template"]["spec"]["initContainers"][0]
    (variable,) = (each for each in container["env"] if each["name"] == "FINETUNE_CONFIG")
    config = CONFIG_ADAPTER.validate_json(variable["value"])
    assert isinstance(config, FetchConfig)
    return config


def test_no_pod_starts_before_the_adapter_is_merged() -> None:
    cluster = merging()

    assert not cluster.deployments
    assert (cluster.condition("Reconciling") or ("",))[0] == "Merging"
    config = cluster.cluster.config("merge")
    assert isinstance(config, MergeConfig)
    assert (config.checkpoint.digest, config.base_model, config.probe) == (digest("1"), BASE, digest("9"))
    resources = cluster.cluster.stage_job("merge")["spec"]["template"]["spec"]["containers"][0]["resources"]
    assert resources["limits"] == {"memory": "8Gi"}


def test_pods_fetch_the_merged_weights_and_their_probe_and_no_base_model() -> None:
    (item,) = fetch_config(merged(merging())).items

    assert (item.artifact.digest, item.merged, item.probe) == (digest("1"), MERGED.weights, MERGED.probe)
    assert item.folder == "router"


def test_merged_weights_enter_the_model_cache() -> None:
    cluster = merging(serving={"modelCache": {"claim": "cache"}})
    cluster.put(claim("cache", "ReadWriteMany"))
    merged(cluster)

    config = cluster.cluster.config("fill")
    assert isinstance(config, FillConfig)
    assert (config.artifact.digest, config.merged) == (digest("1"), MERGED.weights)
    cluster.cluster.end("fill", "")
    cluster.settle()
    (item,) = fetch_config(cluster).items
    assert item.in_cache


@pytest.mark.parametrize("has_merge_job", [True, False])
def test_a_merged_model_is_cached_again_when_its_fill_job_is_deleted(has_merge_job: bool) -> None:
    cluster = merging(serving={"modelCache": {"claim": "cache"}})
    cluster.put(claim("cache", "ReadWriteMany"))
    merged(cluster)
    cluster.cluster.end("fill", "")
    cluster.settle()
    deployments = dict(cluster.deployments)
    for job in list(cluster.cluster.of("Job")):
        if "fill" in job or not has_merge_job:
            cluster.cluster.remove("Job", job)
    cluster.settle()

    config = cluster.cluster.config("fill")
    assert isinstance(config, FillConfig)
    assert (config.artifact.digest, config.merged) == (digest("1"), MERGED.weights)
    assert cluster.cluster.has_stage_job("merge") == has_merge_job
    assert dict(cluster.deployments) == deployments


def test_a_merged_model_without_a_cache_needs_no_fill_job() -> None:
    assert not merged(merging()).cluster.has_stage_job("fill")


@pytest.mark.parametrize("held", [{"replicas": 0}, {"strategy": {"paused": True}}])
def test_nothing_is_merged_for_a_revision_that_may_not_start(held: Manifest) -> None:
    cluster = EndpointCluster(checkpoint("first", "1"), models=MODELS, **held)
    cluster.put(profile())
    cluster.settle()
    assert not cluster.cluster.of("Job")

    cluster.edit(replicas=1, strategy={})
    cluster.settle()
    assert cluster.cluster.has_stage_job("merge")


def test_vllm_serves_a_merged_adapter_that_it_cannot_load() -> None:
    cluster = merging(adapter=DORA, models=[{**MODELS[0], "merge": False}], **VLLM)
    reason, message = cluster.condition("Stalled") or ("", "")
    assert reason == "UnsupportedByEngine"
    assert "merge: true" in message

    cluster = merged(merging(adapter=DORA, **VLLM))

    (deployment,) = cluster.deployments.values()
    command = deployment["spec"]["template"]["spec"]["containers"][0]["command"]
    assert "--served-model-name=router" in command
    assert "--enable-lora" not in command


def test_a_merged_model_is_the_only_one_of_its_endpoint() -> None:
    cluster = merging(models=[*MODELS, {"name": "other", "follow": {"modelLine": "tickets"}}])

    problems = [each.problem for each in resolve(cluster.endpoint, cluster.snapshot().checkpoints).problems]
    assert len(problems) == 1
    assert "checkpoint first is merged, so it is served instead of the base model" in problems[0]


def test_a_merge_that_fails_is_reported_and_tried_again() -> None:
    cluster = merging()
    cluster.cluster.end("merge", "ArtifactCorrupt: log-probabilities differ", exit_code=10)
    plan = cluster.reconcile()

    reason, message = cluster.condition("Reconciling") or ("", "")
    assert reason == "MergeFailed"
    assert "ArtifactCorrupt: log-probabilities differ" in message
    assert plan.requeue_after == pytest.approx(300)


def test_a_result_that_is_lost_is_made_again_from_the_store() -> None:
    cluster = merging()
    cluster.cluster.end("merge", MERGED.to_json())
    (pod,) = cluster.pods
    before = cluster.cluster.stage_job("merge")["metadata"]["uid"]
    del cluster.pods[pod]
    cluster.wait(20)
    cluster.settle()

    assert cluster.cluster.stage_job("merge")["metadata"]["uid"] != before
    assert merged(cluster).deployments


def test_a_served_merge_needs_its_job_no_more() -> None:
    cluster = merged(merging())
    (job,) = cluster.cluster.of("Job")
    cluster.cluster.remove("Job", job)
    cluster.settle()

    assert not cluster.cluster.of("Job")
    assert len(cluster.deployments) == 1


def test_a_full_checkpoint_is_served_as_before() -> None:
    names: list[str] = []
    for models in (MODELS, [{"name": "router", "follow": {"modelLine": "tickets"}}]):
        cluster = EndpointCluster(checkpoint("first", "1", type="Full"), models=models)
        cluster.settle()
        names += cluster.deployments
    assert names[0] == names[1]
