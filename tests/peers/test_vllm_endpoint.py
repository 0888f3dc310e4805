# SPDX-License-Identifier: Apache-2.0
"""An endpoint with the engine VLLM, on a cluster with a node: the operator, its pods and their clients.

`make test-peers` runs it in namespaces of its own. Answers are compared in float32.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import httpx
import openai
import pytest

from finetune_client.backend import Object
from finetune_operator.api.labels import REVISION
from finetune_trainer.contract.environment import METRICS_PORT, SERVE_PORT
from tests.e2e import manifests, pods
from tests.e2e.pods import Keeper
from tests.e2e.team import (
    PATIENCE_SECONDS,
    PAUSE_SECONDS,
    Team,
    condition_of,
    name_of,
    new_namespace,
    uid_of,
)
from tests.peers.clusterendpoint import (
    KEY,
    Change,
    PublishedCopies,
    Served,
    answer,
    client_of,
    pod_of,
    served,
    with_another_digest,
    without_effect,
)
from tests.peers.unreachable import UNREACHABLE
from tests.waiting import eventually
from tools.cluster import TestCluster
from tools.cluster.layout import ISOLATED
from tools.demo.admin_access import AdminAccess
from tools.demo.install import images, install
from tools.demo.questions import SteadyLoad
from tools.images.node_images import Node
from tools.peers import vllm, vllmimage

pytestmark = pytest.mark.skipif(
    ISOLATED not in os.environ or not vllmimage.is_installed(),
    reason="make test-peers builds an image with vLLM, and runs this in namespaces with a cluster",
)

ENGINE: Final = f"e2e-vllm-{manifests.OWN}"
"""Profile with the engine VLLM."""
CACHED: Final = f"e2e-vllm-cached-{manifests.OWN}"
"""The same with a model cache."""
DORA: Final = {"type": "LoRA", "lora": {"r": 8, "alpha": 16, "dropout": 0, "dora": True}}
SETTINGS: Final[dict[str, Any]] = {
    "contextLength": 512,
    "maxConcurrentRequests": 8,
    "extraEngineArguments": [vllm.FLOAT32, *vllm.CPU_ARGUMENTS],
}
TOKENS: Final = 400
"""Tokens of a stream that takes seconds; the test deletes its pod meanwhile."""
QUESTIONS: Final = manifests.PROMPTS[::5]


@pytest.fixture(scope="module")
def access() -> Iterator[AdminAccess]:
    with TestCluster():
        access = AdminAccess.from_environment()
        engine = vllmimage.load(Node())
        refs = images()
        install(access, refs)
        profile = manifests.profile(ENGINE)
        profile["spec"] |= {
            "images": {"engine": engine},
            "serving": {
                "engine": "VLLM",
                "allowedEngineArguments": [
                    argument.partition("=")[0] for argument in SETTINGS["extraEngineArguments"]
                ],
            },
            "pods": manifests.sized(
                manifests.SMALL
                | {"serve": {"cpu": "200m", "memory": "4Gi"}, "merge": {"cpu": "150m", "memory": "2Gi"}}
            ),
        }
        serving = profile["spec"]["serving"] | {"modelCache": {"claim": "cache"}}
        cached = manifests.of("ComputeProfile", CACHED, profile["spec"] | {"serving": serving})
        for each in (profile, cached, manifests.profile(manifests.CPU)):
            access.kubectl("apply", "--server-side", "--filename=-", text=json.dumps(each))
        yield access


@pytest.fixture(scope="module")
def team(access: AdminAccess) -> Iterator[Team]:
    with new_namespace(access, "vllm", "restricted") as team:
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "desk-keys"},
            "stringData": {"shop": KEY},
        }
        team.apply(manifests.claim("artifacts"), manifests.claim("models"), secret)
        yield team


@pytest.fixture(scope="module")
def keeper(team: Team) -> Keeper:
    return pods.keep_model(team, images().operator)


def endpoint(name: str, profile: str, model: Object, **serving: Any) -> Object:
    made = manifests.endpoint(name, "routing")
    made["spec"] |= {"models": [{"name": "tuned", **model}], "compute": {"profile": profile}}
    made["spec"]["serving"] = {"apiKeysSecretRef": {"name": "desk-keys"}, **serving}
    return made


@dataclass(frozen=True)
class Rollout:
    """A rollout from the built-in engine to vLLM, with requests from before its begin to its end."""

    before: Served
    after: Served
    load: SteadyLoad
    desk: Object


@pytest.fixture(scope="module")
def rollout(team: Team, keeper: Keeper) -> Rollout:
    team.apply(
        manifests.configmap("tickets", manifests.jsonl("billing")),
        manifests.dataset("tickets", "tickets"),
        manifests.finetunejob("routing"),
        manifests.finetunejob("dora", method=DORA),
        endpoint("desk", manifests.CPU, {"follow": {"modelLine": "routing"}}),
    )
    first = team.until("InferenceDeployment", "desk", "Ready")
    before = served(team, first, SERVE_PORT, QUESTIONS)
    with SteadyLoad(client_of(team, "desk"), "tuned", manifests.PROMPTS, 1) as load:
        team.patch("infd", "desk", {"compute": {"profile": ENGINE}, "serving": SETTINGS})
        desk = until_only(team, first["status"]["revision"])
    return Rollout(before, served(team, desk, METRICS_PORT, QUESTIONS), load, desk)


@pytest.fixture(scope="module")
def evaluations(team: Team, rollout: Rollout) -> dict[str, Object]:
    """The served Checkpoint, measured with each engine, by the name of its profile."""
    prompts = manifests.PROMPTS[:6]
    rows = manifests.jsonl("billing", prompts[:3]) + manifests.jsonl("dispatch", prompts[3:])
    only_questions = {"split": {"validation": 0, "test": 0}}
    spec = {
        "checkpoints": [rollout.desk["status"]["models"][0]["checkpoint"]],
        "dataset": {"ref": {"name": "questions"}, "split": "train"},
        "metrics": ["exact_match", "answer_tokens"],
        "compare": ["Base"],
    }
    arguments = {ENGINE: {"extraEngineArguments": SETTINGS["extraEngineArguments"]}, manifests.CPU: {}}
    team.apply(
        manifests.configmap("questions", rows),
        manifests.dataset("questions", "questions", **only_questions),
        *(
            manifests.of("Evaluation", name, {**spec, **given, "profile": name})
            for name, given in arguments.items()
        ),
    )
    return {name: team.until("Evaluation", name, "Ready") for name in arguments}


@pytest.fixture(scope="module")
def published(
    team: Team, keeper: Keeper, rollout: Rollout, tmp_path_factory: pytest.TempPathFactory
) -> PublishedCopies:
    checkpoint = team.get("Checkpoint", rollout.desk["status"]["models"][0]["checkpoint"])
    return PublishedCopies(keeper, checkpoint["spec"]["digest"], tmp_path_factory.mktemp("copies"))


def until_only(team: Team, old: str) -> Object:
    """Wait until the endpoint serves another revision than `old`, which has no pod left."""

    def moved() -> Object | None:
        found = team.get("InferenceDeployment", "desk")
        stalled = condition_of(found, "Stalled")
        assert not stalled, team.describe("InferenceDeployment", "desk")
        is_moved = found["status"]["revision"] != old and condition_of(found, "Ready")
        return found if is_moved and not team.access.pods(team.namespace, f"{REVISION}={old}") else None

    return eventually(
        f"desk serves another revision than {old}",
        moved,
        PATIENCE_SECONDS,
        describe=lambda: team.describe("InferenceDeployment", "desk"),
        pause=PAUSE_SECONDS,
    )


def test_no_request_fails_while_vllm_takes_over(rollout: Rollout) -> None:
    assert rollout.load.sent >= 5
    assert (rollout.load.failed, rollout.load.failures) == (0, {})


def test_both_engines_answer_alike(rollout: Rollout) -> None:
    assert rollout.after.answers == rollout.before.answers
    tuned = {found.text for (model, _), found in rollout.after.answers.items() if model == "tuned"}
    assert tuned == {"billing"}
    for question in QUESTIONS:
        assert rollout.after.answers["base", question] != rollout.after.answers["tuned", question]


def test_an_evaluation_has_the_answers_of_the_engine_of_its_profile(evaluations: dict[str, Object]) -> None:
    ((by_vllm,), (by_trainer,)) = (
        evaluations[name]["status"]["evaluations"] for name in (ENGINE, manifests.CPU)
    )
    assert by_vllm["answerEngine"] == f"VLLM {vllm.version()}"
    assert "answerEngine" not in by_trainer
    assert by_vllm["scores"] == by_trainer["scores"]
    assert any(each["value"] == 0.5 for each in by_vllm["scores"])


def test_both_engines_tell_prometheus_the_same_weights(team: Team, rollout: Rollout) -> None:
    assert rollout.after.models == rollout.before.models
    digest = team.get("Checkpoint", rollout.desk["status"]["models"][0]["checkpoint"])["spec"]["digest"]
    assert any(f'digest="{digest}",model="tuned"' in line for line in rollout.after.models)


def test_the_predictions_were_compared_with_the_record_of_the_trainer(team: Team, rollout: Rollout) -> None:
    line = team.until_logged(pod_of(team, rollout.desk), "tuned differs from its probe by up to")
    print(line)


@pytest.mark.parametrize("path", UNREACHABLE)
def test_no_other_route_of_vllm_is_behind_the_service(team: Team, rollout: Rollout, path: str) -> None:
    address, port = team.access.service_address(team.namespace, "desk")
    with httpx.Client(trust_env=False, headers={"Authorization": f"Bearer {KEY}"}) as client:
        for method in ("GET", "POST"):
            assert client.request(method, f"http://{address}:{port}{path}").status_code == 404


def test_a_key_of_the_secret_is_required(team: Team, rollout: Rollout) -> None:
    assert {each.id for each in client_of(team, "desk").models.list()} == {"base", "tuned"}
    with pytest.raises(openai.AuthenticationError):
        client_of(team, "desk", "sk-another").models.list()


def test_metrics_are_on_their_own_port_only(team: Team, rollout: Rollout) -> None:
    address = pod_of(team, rollout.desk)["status"]["podIP"]
    with httpx.Client(trust_env=False) as client:
        assert "vllm:request_success_total" in client.get(f"http://{address}:{METRICS_PORT}/metrics").text
        refused = client.get(f"http://{address}:{SERVE_PORT}/metrics")
    assert "vllm:" not in refused.text
    assert refused.status_code == 404


def test_a_dora_checkpoint_is_served_merged_and_in_place(team: Team, rollout: Rollout) -> None:
    model = {"follow": {"modelLine": "dora"}, "merge": True}
    team.apply(manifests.claim("cache"), endpoint("merged", CACHED, model, **SETTINGS))
    merged = team.until("InferenceDeployment", "merged", "Ready")

    client = client_of(team, "merged")
    assert {answer(client, "tuned", question).text for question in QUESTIONS} == {"billing"}
    assert {each.id for each in client.models.list()} == {"tuned"}
    folder = team.kubectl(
        "exec", name_of(pod_of(team, merged)), "-c", "engine", "--", "readlink", "-f", "/mnt/models/tuned"
    )
    assert folder.startswith("/mnt/model-cache/checkpoints/")
    team.kubectl("delete", "infd", "merged")
    team.until_gone("pods", uid_of(merged))


def damage(keeper: Keeper, digest: str) -> None:
    """Append a byte to published weights."""
    weights = f"/store/checkpoints/{digest.removeprefix('sha256:')}/adapter_model.safetensors"
    keeper.run(f"chmod u+w {weights} && printf x >> {weights}")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("idle", without_effect, "its adapter changes nothing"),
        ("damaged", with_another_digest, "adapter_model.safetensors"),
    ],
)
def test_wrong_weights_are_never_ready_and_the_endpoint_says_why(
    team: Team, published: PublishedCopies, name: str, change: Change, message: str
) -> None:
    digest = published.copy(change)
    if name == "damaged":
        damage(published.keeper, digest)
    uri = f"pvc://artifacts/checkpoints/{digest.removeprefix('sha256:')}"
    made = endpoint(name, ENGINE, {"pin": {"uri": uri, "digest": digest}}, **SETTINGS)
    made["spec"]["baseModel"]["digest"] = team.get("InferenceDeployment", "desk")["status"]["baseModelDigest"]
    team.apply(made)

    stalled = team.until("InferenceDeployment", name, "Stalled", "RolloutFailed")

    assert message in condition_of(stalled, "Stalled")["message"]
    assert condition_of(stalled, "Available").get("status") != "True"
    team.kubectl("delete", "infd", name)
    team.until_gone("pods", uid_of(stalled))


def test_a_deleted_pod_finishes_its_stream(team: Team, rollout: Rollout) -> None:
    pod = pod_of(team, rollout.desk)
    stream = client_of(team, "desk").chat.completions.create(
        model="base",
        messages=[{"role": "user", "content": QUESTIONS[0]}],
        stream=True,
        stream_options={"include_usage": True},
        max_tokens=TOKENS,
        extra_body={"ignore_eos": True},
    )
    first = next(stream)
    team.kubectl("delete", "pod", name_of(pod), "--wait=false")

    chunks = [first, *stream]

    ends = [choice.finish_reason for chunk in chunks for choice in chunk.choices]
    assert ends[-1] == "length"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == TOKENS
