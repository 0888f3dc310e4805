# SPDX-License-Identifier: Apache-2.0
"""Settings of `spec.serving` reach the engine, change the revision only if set, or are refused by name."""

import json
from typing import Any

import pytest

from tests.unit.operator.endpoints import EndpointCluster, checkpoint, serving

SETTINGS: dict[str, Any] = {
    "contextLength": 8192,
    "maxTokens": 512,
    "maxConcurrentRequests": 4,
    "maxQueuedRequests": 16,
    "requestDeadlineSeconds": 300,
    "defaultSampling": {"temperature": 0.2, "topP": 0.9},
    "reasoningParser": "qwen3",
}


def pod_of(cluster: EndpointCluster) -> Any:
    (deployment,) = cluster.deployments.values()
    return deployment["spec"]["template"]["spec"]


def config_of(cluster: EndpointCluster) -> Any:
    (engine,) = pod_of(cluster)["containers"]
    return json.loads(next(each["value"] for each in engine["env"] if each["name"] == "FINETUNE_CONFIG"))


def test_the_engine_gets_all_settings() -> None:
    config = config_of(serving(serving=SETTINGS)[0])
    assert {name: config[name] for name in config.keys() - {"contract", "stage", "owner", "models"}} == {
        "baseFolder": "base",
        "maxModelLength": 8192,
        "maxTokens": 512,
        "maxBatchSize": 4,
        "maxQueue": 16,
        "requestDeadlineSeconds": 300,
        "defaultSampling": {"temperature": 0.2, "topP": 0.9},
        "reasoningParser": "qwen3",
    }


def test_settings_that_are_absent_are_the_choice_of_the_engine() -> None:
    config = config_of(serving(serving={})[0])
    assert config.keys() == {"contract", "stage", "owner", "models", "baseFolder"}


@pytest.mark.parametrize("name", SETTINGS)
def test_each_setting_starts_a_new_revision(name: str) -> None:
    cluster, old = serving()
    cluster.edit(serving={name: SETTINGS[name]})
    cluster.settle()
    assert len(cluster.deployments.keys() - {old}) == 1


@pytest.mark.parametrize("empty", [{}, {"defaultSampling": {}}])
def test_empty_settings_start_no_revision(empty: dict[str, Any]) -> None:
    cluster, old = serving()
    cluster.edit(serving=empty)
    cluster.settle()
    assert set(cluster.deployments) == {old}


def test_a_terminating_pod_finishes_the_longest_request() -> None:
    assert pod_of(serving()[0])["terminationGracePeriodSeconds"] == 120
    assert pod_of(serving(serving=SETTINGS)[0])["terminationGracePeriodSeconds"] == 320


def test_a_parser_that_the_engine_does_not_have_is_refused_with_those_that_it_has() -> None:
    cluster = EndpointCluster(checkpoint("first", "1"), serving={"reasoningParser": "qwen9"})
    cluster.settle()
    assert cluster.deployments == {}
    reason, message = cluster.condition("Stalled") or ("", "")
    assert reason == "UnsupportedByEngine"
    assert "spec.serving.reasoningParser" in message
    assert "qwen3" in message
