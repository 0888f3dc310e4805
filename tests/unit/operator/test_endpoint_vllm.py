# SPDX-License-Identifier: Apache-2.0
"""Endpoints with the engine VLLM: the command, the pod, and what is refused before a pod starts."""

import json
from typing import Any

import pytest

from finetune_operator.api.serving import MAX_QUEUED_REQUESTS
from finetune_operator.manifests.engines.vllm import LORA_RANKS, STARTUP_SECONDS
from finetune_operator.reconcile.computeprofile.reconciler import reconcile
from tests.unit.operator.endpoints import BASE, EndpointCluster, checkpoint, digest, profile
from tests.unit.operator.kubernetesexpansion import expanded

VLLM: dict[str, Any] = {
    "serving": {"engine": "VLLM"},
    "images": {"engine": "registry.example/vllm:1"},
    "accelerator": {"resource": "nvidia.com/gpu", "maxPerPod": 8},
}
ROUTER: dict[str, Any] = {"name": "router", "follow": {"modelLine": "tickets"}}
OTHER: dict[str, Any] = {"name": "other", "pin": {"checkpoint": "second"}}

ALLOWED: list[str] = [
    *("--kv-cache-dtype", "--enforce-eager", "--hf-overrides"),
    *("--port", "--api-key", "--api-server-count", "--middleware", "--trust-remote"),
]
"""Arguments that the profile allows, some of which are those of the operator."""


def lineage(**fields: Any) -> dict[str, Any]:
    return {"lineage": {**checkpoint("any", "0").spec.lineage.to_dict(), **fields}}


def cluster_of(
    *others: Any, first: dict[str, Any] | None = None, on: dict[str, Any] | None = None, **spec: Any
) -> EndpointCluster:
    """An endpoint of the Checkpoint `first`, with fields of its lineage, after all of its passes."""
    cluster = EndpointCluster(checkpoint("first", "1", **lineage(**(first or {}))), *others, **spec)
    cluster.put(profile(**(VLLM | (on or {}))))
    cluster.settle()
    return cluster


def pod_of(cluster: EndpointCluster) -> Any:
    (deployment,) = cluster.deployments.values()
    return deployment["spec"]["template"]["spec"]


def container_of(cluster: EndpointCluster) -> Any:
    (container,) = pod_of(cluster)["containers"]
    return container


def command_of(cluster: EndpointCluster) -> list[str]:
    command: list[str] = container_of(cluster)["command"]
    return command


def options_of(cluster: EndpointCluster) -> dict[str, str]:
    """Values of the options; empty for a flag."""
    return {
        name: value
        for name, _, value in (each.partition("=") for each in command_of(cluster))
        if name.startswith("--")
    }


def fetch_of(cluster: EndpointCluster) -> Any:
    (container,) = pod_of(cluster)["initContainers"]
    return json.loads(container["env"][0]["value"])


def refusal(cluster: EndpointCluster, type_: str = "Stalled") -> tuple[str, str]:
    assert cluster.deployments == {}
    return cluster.condition(type_) or ("", "")


def test_the_trainer_image_prepares_the_models_and_the_image_of_the_profile_serves_them() -> None:
    cluster = cluster_of()
    (fetch,), engine = pod_of(cluster)["initContainers"], container_of(cluster)
    assert fetch["image"] == "registry.example/trainer:1"
    assert fetch_of(cluster)["engine"] == "VLLM"
    assert engine["image"] == "registry.example/vllm:1"
    assert command_of(cluster)[:3] == ["vllm", "serve", "/mnt/models/base"]


@pytest.mark.parametrize(("rank", "option"), [(1, 1), (2, 8), (16, 16), (17, 32), (256, 256), (300, 320)])
def test_the_max_rank_is_the_next_that_vllm_has(rank: int, option: int) -> None:
    cluster = cluster_of(first={"adapter": {"r": rank}})
    assert options_of(cluster)["--max-lora-rank"] == str(option)
    assert fetch_of(cluster)["maxLoraRank"] == option


def test_a_model_pinned_by_uri_gets_a_limit_that_the_init_container_checks() -> None:
    pin = {"uri": f"pvc://artifacts/checkpoints/{'9' * 64}", "digest": digest("9")}
    cluster = cluster_of(
        models=[{"name": "router", "pin": pin}], baseModel={"uri": "pvc://models/base", "digest": BASE}
    )
    assert options_of(cluster)["--max-lora-rank"] == "64"
    assert fetch_of(cluster)["maxLoraRank"] == 64


def test_all_models_of_an_endpoint_are_adapters_of_one_server() -> None:
    cluster = cluster_of(
        checkpoint("second", "2", promoted=None, **lineage(adapter={"r": 32})),
        first={"adapter": {"r": 8}},
        models=[ROUTER, OTHER],
    )
    command, options = command_of(cluster), options_of(cluster)
    at = command.index("--lora-modules")
    assert command[at + 1 : at + 3] == ["router=/mnt/models/router", "other=/mnt/models/other"]
    assert (options["--max-loras"], options["--max-cpu-loras"], options["--max-lora-rank"]) == (
        "2",
        "2",
        "32",
    )
    assert options["--served-model-name"] == "base"


def test_a_batch_has_a_bounded_number_of_adapters() -> None:
    pins = [{"name": f"m{n}", "pin": {"checkpoint": "first"}} for n in range(12)]
    options = options_of(cluster_of(models=pins))
    assert (options["--max-loras"], options["--max-cpu-loras"]) == ("8", "12")


def test_a_whole_model_is_served_under_its_name_without_adapters() -> None:
    pin = {"uri": f"pvc://artifacts/checkpoints/{'3' * 64}", "digest": digest("3"), "type": "Full"}
    cluster = cluster_of(
        baseModel={"uri": "pvc://models/base", "digest": digest("b")}, models=[{"name": "whole", "pin": pin}]
    )
    options = options_of(cluster)
    assert command_of(cluster)[2] == "/mnt/models/whole"
    assert options["--served-model-name"] == "whole"
    assert not options.keys() & {"--enable-lora", "--lora-modules", "--max-lora-rank"}
    assert "maxLoraRank" not in fetch_of(cluster)


def test_a_model_that_reads_images_too_is_served_with_text_only() -> None:
    cluster = cluster_of()
    options = options_of(cluster)
    assert json.loads(options["--limit-mm-per-prompt"]) == {"audio": 0, "image": 0, "video": 0}
    assert options["--allowed-media-domains"] == "none.invalid"
    assert {"name": "VLLM_MEDIA_URL_ALLOW_REDIRECTS", "value": "0"} in container_of(cluster)["env"]


def test_settings_that_are_absent_are_those_of_vllm() -> None:
    options = options_of(cluster_of())
    assert options["--max-model-len"] == "auto"
    assert options["--max-num-seqs"] == "256"
    assert options["--shutdown-timeout"] == "100"
    assert not options.keys() & {
        "--max-num-queued-reqs",
        "--override-generation-config",
        "--reasoning-parser",
        "--tool-call-parser",
        "--tensor-parallel-size",
        "--default-chat-template-kwargs",
    }


def test_the_middleware_knows_how_many_requests_the_engine_answers_and_may_queue() -> None:
    limited = {"maxConcurrentRequests": 4, "maxQueuedRequests": 0}
    for serving, limits in (({}, (256, MAX_QUEUED_REQUESTS)), (limited, (4, 0))):
        config = json.loads(container_of(cluster_of(serving=serving))["env"][0]["value"])
        assert (config["maxBatchSize"], config["maxQueue"]) == limits


def test_the_engine_ends_before_the_pod_is_killed() -> None:
    for serving in ({}, {"requestDeadlineSeconds": 600}):
        cluster = cluster_of(serving=serving)
        timeout = int(options_of(cluster)["--shutdown-timeout"])
        config = json.loads(container_of(cluster)["env"][0]["value"])
        assert timeout + 10 < pod_of(cluster)["terminationGracePeriodSeconds"]
        assert timeout >= config.get("requestDeadlineSeconds", 0)


def test_the_parser_that_checkpoints_record_is_used_unless_the_user_sets_one() -> None:
    assert options_of(cluster_of(first={"reasoningParser": "glm45"}))["--reasoning-parser"] == "glm45"
    chosen = cluster_of(first={"reasoningParser": "glm45"}, serving={"reasoningParser": "deepseek_v3"})
    assert options_of(chosen)["--reasoning-parser"] == "deepseek_v3"


def test_several_accelerators_split_the_model_and_share_memory() -> None:
    cluster = cluster_of(compute={"devices": 4})
    assert options_of(cluster)["--tensor-parallel-size"] == "4"
    (memory,) = [each for each in pod_of(cluster)["volumes"] if each["name"] == "shared-memory"]
    assert memory["emptyDir"] == {"medium": "Memory", "sizeLimit": "4Gi"}


def test_cpu_cores_are_not_tensor_parallel() -> None:
    cluster = cluster_of(on={"accelerator": {"resource": "cpu", "maxPerPod": 8}}, compute={"devices": 4})
    assert "--tensor-parallel-size" not in options_of(cluster)
    assert container_of(cluster)["resources"]["requests"]["cpu"] == "4"


def test_a_loading_engine_is_not_restarted_and_metrics_have_a_port_of_their_own() -> None:
    container = container_of(cluster_of())
    startup = container["startupProbe"]
    assert startup["failureThreshold"] * startup["periodSeconds"] == STARTUP_SECONDS
    assert container["livenessProbe"]["httpGet"] == {"path": "/health", "port": 8000}
    assert {each["name"]: each["containerPort"] for each in container["ports"]} == {
        "api": 8000,
        "metrics": 9090,
    }


@pytest.mark.parametrize(
    ("on", "same"),
    [
        ({"images": {"engine": "registry.example/vllm:2"}}, False),
        ({"serving": {"engine": "VLLM", "allowedEngineArguments": ["--kv-cache-dtype"]}}, True),
        ({"serving": {"engine": "Transformers"}}, False),
    ],
)
def test_another_engine_starts_a_new_revision(on: dict[str, Any], same: bool) -> None:
    cluster = cluster_of()
    (before,) = cluster.deployments
    cluster.make_ready(before)
    cluster.settle()
    cluster.put(profile(**(VLLM | on)))
    cluster.settle()
    assert (set(cluster.deployments) == {before}) is same


def test_the_image_of_the_engine_is_no_part_of_revisions_of_the_built_in_engine() -> None:
    cluster = cluster_of(on={"serving": {"engine": "Transformers"}})
    (before,) = cluster.deployments
    cluster.make_ready(before)
    cluster.settle()
    cluster.put(profile(**(VLLM | {"serving": {"engine": "Transformers"}, "images": {}})))
    cluster.settle()
    assert set(cluster.deployments) == {before}


@pytest.mark.parametrize(
    ("first", "parts"),
    [
        (
            {"adapter": {"r": 8, "dora": True}},
            ("spec.models[router]: first", "DoRA", "without method.lora.dora"),
        ),
        ({"adapter": {"r": LORA_RANKS[-1] + 1}}, ("rank 513", "up to 512", "a smaller method.lora.r")),
    ],
)
def test_an_adapter_that_vllm_does_not_load_is_refused(first: dict[str, Any], parts: tuple[str, ...]) -> None:
    reason, message = refusal(cluster_of(first=first))
    assert reason == "UnsupportedByEngine"
    for part in (*parts, "engine: Transformers"):
        assert part in message


def test_models_that_need_other_prompts_or_parsers_do_not_share_a_server() -> None:
    second = lineage(chatTemplateKwargs={"enable_thinking": False}, reasoningParser="glm45")
    cluster = cluster_of(
        checkpoint("second", "2", promoted=None, **second),
        first={"reasoningParser": "qwen3"},
        models=[ROUTER, OTHER],
    )
    reason, message = refusal(cluster)
    assert reason == "UnsupportedByEngine"
    assert "spec.models[other]: second was trained with other chatTemplateKwargs than first" in message
    assert "glm45 and qwen3" in message
    assert "set spec.serving.reasoningParser" in message


@pytest.mark.parametrize(
    ("argument", "problem"),
    [
        ("--kv-cache-dtype=fp8", None),
        ("--enforce-eager", None),
        ("--no-enforce-eager", "is not in serving.allowedEngineArguments of ComputeProfile standard"),
        ("--hf-overrides.rope_theta=1", None),
        ("--swap-space=4", "is not in serving.allowedEngineArguments of ComputeProfile standard"),
        ("--port=1", "is set by the operator"),
        ("--no-enable-lora", "is set by the operator"),
        ("--api-key=x", "is set by the operator"),
        ("--api-server-count=2", "is set by the operator"),
        ("--middleware=mine.Open", "is set by the operator"),
        ("--trust-remote-code", "is set by the operator"),
        ("--trust-remote", "is set by the operator"),
        ("--allowed-media-domains=a", "is set by the operator"),
        ("--limit-mm-per-prompt={}", "is set by the operator"),
        ("--enable-prompt-embeds", "is set by the operator"),
    ],
)
def test_arguments_reach_vllm_only_if_the_profile_allows_them(argument: str, problem: str | None) -> None:
    offered = {"serving": {"engine": "VLLM", "allowedEngineArguments": ALLOWED}}
    cluster = cluster_of(on=offered, serving={"extraEngineArguments": [argument]})
    if problem is None:
        assert command_of(cluster)[-1] == argument
        return
    reason, message = refusal(cluster)
    assert reason == "UnsupportedByEngine"
    assert f"spec.serving.extraEngineArguments: {argument.partition('=')[0]} {problem}" in message


def test_no_argument_is_replaced_by_a_variable_of_the_container() -> None:
    greeting = {"greeting": "$$ $(HOME) $$(HOME)"}
    cluster = cluster_of(first={"chatTemplateKwargs": greeting})
    option = expanded(options_of(cluster)["--default-chat-template-kwargs"])
    assert json.loads(option) == greeting


@pytest.mark.parametrize(
    "settings", [{"toolCallParser": "hermes"}, {"extraEngineArguments": ["--enforce-eager"]}]
)
def test_settings_of_vllm_are_refused_by_name_with_the_built_in_engine(settings: dict[str, Any]) -> None:
    reason, message = refusal(cluster_of(on={"serving": {"engine": "Transformers"}}, serving=settings))
    assert reason == "UnsupportedByEngine"
    (name,) = settings
    assert f"spec.serving.{name} need the engine VLLM" in message


def test_a_profile_without_an_image_of_the_engine_blocks_its_endpoints_and_says_so_itself() -> None:
    cluster = cluster_of(on={"images": {}})
    reason, message = refusal(cluster, "Reconciling")
    assert reason == "ProfileInvalid"
    assert "no images.engine: set it to an image of vLLM" in message
    plan = reconcile(profile(**(VLLM | {"images": {}})), cluster.snapshot())
    assert "images.engine is not set" in json.dumps(plan.status)


def test_the_security_floor_is_about_the_trainer_image_of_a_vllm_pod() -> None:
    cluster = cluster_of()
    cluster.configure(trainer_image_floor="1.2.0")
    (revision,) = cluster.deployments
    cluster.make_ready(revision)
    cluster.settle()
    (condition,) = (each for each in cluster.endpoint.status.conditions if each.type == "ImageCurrent")
    assert "registry.example/trainer:1" in condition.message
    assert "vllm" not in condition.message
