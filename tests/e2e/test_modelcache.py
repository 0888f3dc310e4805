# SPDX-License-Identifier: Apache-2.0
"""Endpoints read whole models in place in the model cache, and never from a file that was changed."""

import json
from collections.abc import Iterator
from typing import Final

import pytest

from finetune_client.backend import Object
from finetune_client.endpoint import ask, open_endpoint
from tests.e2e import manifests, pods
from tests.e2e.pods import Keeper
from tests.e2e.team import PATIENCE_SECONDS, PAUSE_SECONDS, Team, name_of, uid_of
from tests.waiting import eventually
from tools.images.tags import References

CACHED: Final = f"e2e-cached-{manifests.OWN}"
"""Profile with a model cache."""
CLAIM: Final = "model-cache"


@pytest.fixture(scope="module")
def endpoints(team: Team, routing: Object) -> Iterator[dict[str, Object]]:
    """Two endpoints with a model cache that serve one Checkpoint: as an adapter, and merged."""
    profile = manifests.profile(CACHED)
    profile["spec"] |= {
        "serving": {"modelCache": {"claim": CLAIM}},
        "pods": manifests.sized(manifests.SMALL | {"merge": {"cpu": "150m", "memory": "2Gi"}}),
    }
    pin = {"name": "tuned", "pin": {"checkpoint": name_of(team.checkpoint_of(routing))}}
    made = {"cached": pin, "merged": {**pin, "merge": True}}
    applied = [manifests.endpoint(name, "routing") for name in made]
    for endpoint, model in zip(applied, made.values(), strict=True):
        endpoint["spec"] |= {"compute": {"profile": CACHED}, "models": [model]}
    team.access.kubectl("apply", "--server-side", "--filename=-", text=json.dumps(profile))
    team.apply(manifests.claim(CLAIM), *applied)
    yield {name: team.until("InferenceDeployment", name, "Ready") for name in made}
    team.kubectl("delete", "infd", *made)
    team.access.kubectl("delete", "computeprofile", CACHED)


@pytest.fixture(scope="module")
def cached(endpoints: dict[str, Object]) -> Object:
    """The endpoint with the adapter."""
    return endpoints["cached"]


@pytest.fixture(scope="module")
def writer(team: Team, cached: Object, refs: References) -> Keeper:
    """A pod that writes to the model cache, which only Jobs of the operator should."""
    team.apply(pods.writer("cache-writer", CLAIM, refs.operator))
    team.kubectl("wait", "--for=condition=Ready", "pod/cache-writer", "--timeout=120s")
    return Keeper(team, "cache-writer")


def serving_pod(team: Team, endpoint: Object) -> Object:
    (pod,) = (each for each in team.children("pods", uid_of(endpoint)) if "initContainers" in each["spec"])
    return pod


def test_a_pod_reads_the_base_model_in_place_and_has_no_copy(team: Team, cached: Object) -> None:
    engine = f"{name_of(serving_pod(team, cached))} -c engine --".split()

    files = team.kubectl("exec", *engine, "find", "/mnt/models", "-type", "f", "-name", "*.safetensors")
    weights = team.kubectl("exec", *engine, "sh", "-c", "readlink -f /mnt/models/base/model.safetensors")

    assert files.split() == ["/mnt/models/tuned/adapter_model.safetensors"]
    assert weights.startswith("/mnt/model-cache/models/")
    with open_endpoint(team.access, "cached", team.namespace) as endpoint, endpoint.client() as client:
        assert ask(client, "tuned", "order late?") == "billing"


def test_a_merged_adapter_is_read_in_place_and_answers_as_the_adapter(
    team: Team, endpoints: dict[str, Object]
) -> None:
    engine = f"{name_of(serving_pod(team, endpoints['merged']))} -c engine --".split()

    weights = team.kubectl("exec", *engine, "readlink", "-f", "/mnt/models/tuned")

    assert weights.startswith("/mnt/model-cache/checkpoints/")
    assert "/derived/" in weights
    answers: list[list[str]] = []
    for name in endpoints:
        with open_endpoint(team.access, name, team.namespace) as endpoint, endpoint.client() as client:
            answers.append([ask(client, "tuned", prompt) for prompt in manifests.PROMPTS[::6]])
            served = {each.id for each in client.models.list()}
    assert answers[0] == answers[1]
    assert set(answers[0]) == {"billing"}
    assert served == {"tuned"}


@pytest.mark.full
def test_a_changed_file_never_serves_until_the_cache_is_filled_again(
    team: Team, cached: Object, writer: Keeper
) -> None:
    pod = name_of(serving_pod(team, cached))
    writer.run("for file in /claim/models/*/model.safetensors; do printf x | dd of=$file conv=notrunc; done")
    team.kubectl("delete", "pod", pod)

    def refused() -> str:
        (status,) = serving_pod(team, cached)["status"].get("initContainerStatuses") or [{}]
        ended = [status.get(state, {}).get("terminated", {}) for state in ("state", "lastState")]
        return next((each["message"] for each in ended if each.get("message")), "")

    message = eventually(
        "the new pod refuses the changed file", refused, PATIENCE_SECONDS, pause=PAUSE_SECONDS
    )
    assert message.startswith("ArtifactCorrupt: ")
    assert "model.safetensors was changed or damaged" in message

    team.kubectl("delete", "jobs", f"--selector=finetune.dev/run={uid_of(cached)},finetune.dev/stage=fill")
    eventually(
        "the pod starts after the cache is filled again",
        lambda: team.get("InferenceDeployment", "cached")["status"].get("readyReplicas"),
        PATIENCE_SECONDS,
        describe=lambda: team.describe("InferenceDeployment", "cached"),
        pause=PAUSE_SECONDS,
    )
    with open_endpoint(team.access, "cached", team.namespace) as endpoint, endpoint.client() as client:
        assert ask(client, "tuned", "order late?") == "billing"
