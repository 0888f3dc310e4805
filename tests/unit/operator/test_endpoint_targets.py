# SPDX-License-Identifier: Apache-2.0
"""Weights that an endpoint serves: withdrawn champions, pins by uri, several models."""

from typing import Any

import pytest

from finetune_operator.api.checkpoint import Checkpoint
from finetune_trainer.contract.configs import CONFIG_ADAPTER
from finetune_trainer.contract.serving import FetchConfig, ServeConfig
from tests.unit.operator.endpoints import BASE, EndpointCluster, checkpoint, digest

FOLLOWS = {"name": "router", "follow": {"modelLine": "tickets"}}


def pin(character: str, store: str = "pvc://golden", **fields: Any) -> dict[str, Any]:
    """A model whose weights are named by uri and digest."""
    place = {"uri": f"{store}/checkpoints/{character * 64}", "digest": digest(character)}
    return {"name": "bought", "pin": {**place, **fields}}


def serve(cluster: EndpointCluster) -> str:
    """Make the newest revision ready. Returns its name."""
    cluster.settle()
    name = list(cluster.deployments)[-1]
    cluster.make_ready(name)
    cluster.settle()
    return name


def served(cluster: EndpointCluster) -> dict[str, tuple[str | None, str | None]]:
    """Checkpoint and digest of each model name."""
    return {model.name: (model.checkpoint, model.digest) for model in cluster.endpoint.status.models}


def configs(cluster: EndpointCluster) -> tuple[FetchConfig, ServeConfig]:
    """Config of the only revision's pods."""
    (deployment,) = cluster.deployments.values()
    pod = deployment["spec"]["template"]["spec"]
    texts = [
        next(each["value"] for each in container["env"] if each["name"] == "FINETUNE_CONFIG")
        for container in (pod["initContainers"][0], pod["containers"][0])
    ]
    fetch, engine = (CONFIG_ADAPTER.validate_json(text) for text in texts)
    assert isinstance(fetch, FetchConfig)
    assert isinstance(engine, ServeConfig)
    return fetch, engine


def going(name: str, character: str, **spec: Any) -> Checkpoint:
    """A Checkpoint that waits for its finalizer."""
    raw = checkpoint(name, character, **spec).to_dict()
    raw["metadata"]["deletionTimestamp"] = "2030-01-01T00:00:00Z"
    return Checkpoint.model_validate(raw)


def test_a_pin_by_uri_is_fetched_by_its_digest_beside_the_base_model_that_the_spec_names() -> None:
    cluster = EndpointCluster(models=[pin("7")], baseModel={"uri": "pvc://models/base", "digest": BASE})
    serve(cluster)
    fetch, engine = configs(cluster)
    assert fetch.store.uri == "pvc://golden"
    assert [(item.artifact.kind, item.artifact.digest) for item in fetch.items] == [
        ("models", BASE),
        ("checkpoints", digest("7")),
    ]
    assert [model.type for model in engine.models] == ["Adapter"]
    assert served(cluster) == {"bought": (None, digest("7"))}
    assert "bought = sha256:777777777777" in (cluster.condition("Ready") or ("", ""))[1]


def test_a_whole_model_pinned_by_uri_takes_the_place_of_the_base_model() -> None:
    base = {"uri": "pvc://models/base", "digest": BASE}
    cluster = EndpointCluster(models=[pin("7", type="Full")], baseModel=base)
    cluster.settle()
    fetch, engine = configs(cluster)
    assert [item.artifact.kind for item in fetch.items] == ["checkpoints"]
    assert engine.base_folder == "bought"


def test_weights_pinned_by_uri_are_fetched_anew_from_another_store() -> None:
    base = {"uri": "pvc://models/base", "digest": BASE}
    cluster = EndpointCluster(models=[pin("7")], baseModel=base)
    old = serve(cluster)
    cluster.edit(models=[pin("7", store="pvc://moved")])
    assert serve(cluster) != old
    assert configs(cluster)[0].store.uri == "pvc://moved"


def test_a_pin_to_what_is_no_store_names_the_field() -> None:
    base = {"uri": "pvc://models/base", "digest": BASE}
    cluster = EndpointCluster(models=[pin("7", store="ftp://golden")], baseModel=base)
    cluster.settle()
    assert not cluster.deployments
    reason, message = cluster.condition("Reconciling") or ("", "")
    assert reason == "InvalidSpec"
    assert "spec.models[bought].pin.uri: ftp://golden is not a valid store" in message


def test_weights_in_a_bucket_are_opened_with_the_secret_that_the_pin_names() -> None:
    base = {"uri": "pvc://models/base", "digest": BASE}
    bucket = pin("7", store="s3://golden", credentialsSecretRef={"name": "golden-reader"})
    cluster = EndpointCluster(models=[bucket], baseModel=base)
    cluster.settle()
    credentials = configs(cluster)[0].store.credentials
    assert credentials is not None
    assert credentials.name == "golden-reader"
    # The record says itself where; the pin may say that another Secret opens it.
    pinned = {"name": "router", "pin": {"checkpoint": "first", "credentialsSecretRef": {"name": "reader"}}}
    cluster = EndpointCluster(
        checkpoint("first", "1", uri=f"s3://rows/checkpoints/{'1' * 64}"), models=[pinned]
    )
    cluster.settle()
    credentials = configs(cluster)[0].store.credentials
    assert credentials is not None
    assert credentials.name == "reader"


def test_models_in_two_stores_cannot_share_an_endpoint() -> None:
    base = {"uri": "pvc://models/base", "digest": BASE}
    cluster = EndpointCluster(checkpoint("first", "1"), models=[FOLLOWS, pin("7")], baseModel=base)
    cluster.settle()
    assert not cluster.deployments
    reason, message = cluster.condition("Stalled") or ("", "")
    assert reason == "InvalidSpec"
    assert "pvc://artifacts and pvc://golden" in message


def test_weights_that_no_pin_names_any_more_are_kept_until_there_are_others() -> None:
    base = {"uri": "pvc://models/base", "digest": BASE}
    cluster = EndpointCluster(models=[pin("7", store="pvc://artifacts")], baseModel=base)
    old = serve(cluster)
    cluster.edit(models=[{"name": "bought", "follow": {"modelLine": "tickets"}}])
    cluster.settle()
    assert cluster.points_at == old
    reason, message = cluster.condition("Reconciling") or ("", "")
    assert reason == "CheckpointNotFound"
    assert "serves weights sha256:777777777777, which no pin names now" in message
    cluster.put(checkpoint("first", "1"))
    serve(cluster)
    assert served(cluster) == {"bought": ("first", digest("1"))}


def test_a_champion_whose_record_is_being_deleted_gives_way_to_the_one_before() -> None:
    cluster = EndpointCluster(checkpoint("first", "1"), checkpoint("second", "2", promoted=10))
    serve(cluster)
    assert served(cluster) == {"router": ("second", digest("2"))}
    cluster.put(going("second", "2", promoted=10))
    serve(cluster)
    assert served(cluster) == {"router": ("first", digest("1"))}


def test_a_checkpoint_that_is_being_deleted_cannot_be_pinned_and_is_still_served_where_it_was() -> None:
    pinned = [{"name": "router", "pin": {"checkpoint": "first"}}]
    cluster = EndpointCluster(going("first", "1"), models=pinned)
    cluster.settle()
    assert not cluster.deployments
    cluster.put(checkpoint("first", "1"))
    revision = serve(cluster)
    cluster.put(going("first", "1"))
    cluster.settle()
    assert list(cluster.deployments) == [revision]
    assert (cluster.condition("Reconciling") or ("", ""))[0] == "CheckpointNotFound"


@pytest.mark.parametrize(
    ("checkpoints", "text"),
    [
        (
            (),
            "model line tickets has no Checkpoint yet: check spec.models[router].follow.modelLine, or start",
        ),
        ((checkpoint("first", "1", promoted=None),), "model line tickets has no promoted checkpoint yet"),
    ],
)
def test_an_endpoint_tells_a_line_without_checkpoints_from_one_without_a_champion(
    checkpoints: tuple[Checkpoint, ...], text: str
) -> None:
    cluster = EndpointCluster(*checkpoints)
    cluster.settle()
    reason, message = cluster.condition("Reconciling") or ("", "")
    assert reason == "WaitingForCheckpoint"
    assert text in message


def test_an_endpoint_says_that_what_it_serves_was_rejected_and_nothing_can_take_its_place() -> None:
    cluster = EndpointCluster(checkpoint("first", "1"))
    serve(cluster)
    cluster.put(checkpoint("first", "1", approval={"state": "Rejected"}))
    cluster.settle()
    reason, message = cluster.condition("Ready") or ("", "")
    assert reason == "Serving"
    assert "model line tickets has no promoted checkpoint" in message
    assert "first was rejected and keeps serving" in message


def test_a_new_champion_below_a_followers_own_bar_is_held_back_and_said() -> None:
    follow = {"modelLine": "tickets", "minScores": [{"metric": "exact_match", "min": 0.9}]}
    scores = {"first": 0.95, "second": 0.5}

    def judged(name: str, character: str, promoted: int) -> Checkpoint:
        raw = checkpoint(name, character, promoted=promoted).to_dict()
        score = {"metric": "exact_match", "subject": "Tuned", "value": scores[name], "rows": 20}
        raw["status"]["evaluations"] = [
            {"checkpoint": name, "verdict": "Passed", "source": "Run", "scores": [score]}
        ]
        return Checkpoint.model_validate(raw)

    cluster = EndpointCluster(judged("first", "1", 0), models=[{"name": "router", "follow": follow}])
    serve(cluster)
    cluster.put(judged("second", "2", 10))
    cluster.settle()
    assert served(cluster) == {"router": ("first", digest("1"))}
    assert "exact_match is 0.500, below 0.900" in (cluster.condition("Ready") or ("", ""))[1]


def test_a_model_that_cannot_be_resolved_yet_does_not_hold_back_the_others() -> None:
    models = [FOLLOWS, {"name": "writer", "follow": {"modelLine": "letters"}}]
    cluster = EndpointCluster(checkpoint("first", "1"), models=models)
    serve(cluster)
    assert served(cluster) == {"router": ("first", digest("1"))}
    reason, message = cluster.condition("Reconciling") or ("", "")
    assert reason == "WaitingForCheckpoint"
    assert "model line letters" in message
    cluster.put(checkpoint("letter", "2", modelLine="letters"))
    serve(cluster)
    assert set(served(cluster)) == {"router", "writer"}


def test_a_new_champion_moves_its_followers_and_no_pin_beside_them() -> None:
    models = [FOLLOWS, {"name": "router-v1", "pin": {"checkpoint": "first"}}]
    cluster = EndpointCluster(checkpoint("first", "1"), models=models)
    serve(cluster)
    cluster.put(checkpoint("second", "2", promoted=10))
    serve(cluster)
    assert served(cluster) == {"router": ("second", digest("2")), "router-v1": ("first", digest("1"))}


def at_commit(name: str, character: str, commit: str) -> Checkpoint:
    """A Checkpoint from a base model at the hub."""
    raw = checkpoint(name, character).to_dict()
    raw["spec"]["lineage"]["baseModel"].update(uri="hf://google/gemma", revision=commit)
    return Checkpoint.model_validate(raw)


def test_a_revision_of_the_base_model_takes_only_what_was_trained_from_that_commit() -> None:
    record = at_commit("first", "1", "9" * 40)
    for revision, reason in ((None, "RollingOut"), ("9" * 40, "RollingOut"), ("main", "BaseModelMismatch")):
        cluster = EndpointCluster(record, baseModel={"uri": "hf://google/gemma", "revision": revision})
        cluster.settle()
        found = cluster.condition("Reconciling") or ("", "")
        assert found[0] == reason, found
    assert f"trained from revision {'9' * 40} of hf://google/gemma" in found[1]


def thinks_not(name: str, character: str) -> Checkpoint:
    """A Checkpoint that was trained with an argument for the chat template."""
    raw = checkpoint(name, character).to_dict()
    raw["spec"]["lineage"]["chatTemplateKwargs"] = {"enable_thinking": False}
    return Checkpoint.model_validate(raw)


def test_an_endpoint_serves_with_the_template_arguments_of_the_checkpoint() -> None:
    cluster = EndpointCluster(thinks_not("first", "1"))
    cluster.settle()
    (model,) = configs(cluster)[1].models
    assert model.chat_template_kwargs == {"enable_thinking": False}
