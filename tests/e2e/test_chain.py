# SPDX-License-Identifier: Apache-2.0
"""From one YAML to an answer: three concurrent runs, two of which pass their gates."""

import pytest

from finetune_client.backend import Object
from finetune_client.endpoint import ask, open_endpoint
from finetune_operator.api.labels import STAGE
from tests.e2e import manifests
from tests.e2e.manifests import GPU
from tests.e2e.pods import Keeper
from tests.e2e.team import PATIENCE_SECONDS, PAUSE_SECONDS, Team, condition_of, name_of, uid_of
from tests.waiting import eventually
from tools.cluster.node import GPU_RESOURCE


def begin(team: Team, keeper: Keeper, request: pytest.FixtureRequest) -> None:
    """Create two more runs, which train while the tests check `routing`, and an endpoint for one of them."""
    out_of_reach = {"metric": "loss", "max": 0.0001}
    team.apply(
        manifests.endpoint("whole", "whole"),
        manifests.finetunejob(
            "whole",
            method={"type": "Full"},
            hyperparameters={"epochs": 10, "learningRate": 0.003},
            **manifests.judged({"metric": "loss", "max": 1}),
        ),
        manifests.finetunejob(
            "unworthy",
            modelLine="routing",
            hyperparameters={"epochs": 5, "learningRate": 0.01},
            deletionPolicy="Delete",
            **manifests.judged(out_of_reach),
        ),
    )


def test_a_dataset_becomes_a_version_named_by_its_content(team: Team, tickets: Object) -> None:
    version = team.get("DatasetVersion", tickets["status"]["latestVersion"])
    assert version["spec"]["dataset"] == "tickets"
    assert name_of(version) == f"tickets-{version['spec']['digest'].removeprefix('sha256:')[:12]}"
    assert {split["name"]: split["rows"] for split in version["spec"]["splits"]} == {
        "train": 18, "validation": 3, "test": 3,
    }  # fmt: skip


def test_a_run_that_clears_its_bar_is_promoted(team: Team, tickets: Object, routing: Object) -> None:
    assert condition_of(routing, "Ready")["reason"] == "Promoted"
    for domain in ("DatasetReady", "Preflighted", "Trained", "Evaluated"):
        assert condition_of(routing, domain)["status"] == "True"
    checkpoint = team.checkpoint_of(routing)
    assert condition_of(checkpoint, "Promoted")["status"] == "True"
    assert checkpoint["spec"]["modelLine"] == "routing"
    assert checkpoint["spec"]["type"] == "Adapter"
    scores = {(score["metric"], score["subject"]): score["value"] for score in
              routing["status"]["evaluation"]["scores"]}  # fmt: skip
    assert scores["exact_match", "Tuned"] == 1
    assert scores["exact_match", "Base"] == 0
    assert scores["loss", "Tuned"] < scores["loss", "Base"]


def test_a_checkpoint_names_all_that_it_came_from(team: Team, tickets: Object, routing: Object) -> None:
    lineage = team.checkpoint_of(routing)["spec"]["lineage"]
    resolved = routing["status"]["resolved"]
    assert lineage["job"] == {"name": "routing", "uid": uid_of(routing)}
    assert lineage["datasetVersion"] == tickets["status"]["latestVersion"]
    assert lineage["baseModel"] == {"uri": manifests.MODEL_URI, "digest": resolved["baseModelDigest"]}
    assert lineage["hyperparameters"] == resolved["hyperparameters"]
    assert lineage["hyperparameters"]["totalSteps"] == 45
    assert lineage["trainerImage"] == resolved["trainerImage"]


def test_the_time_of_each_stage_is_kept_and_device_time_only_where_there_are_devices(
    routing: Object,
) -> None:
    stages = {stage["name"]: stage for stage in routing["status"]["stages"]}
    assert list(stages) == ["preflight", "train", "evaluate"]
    assert all(stage["seconds"] > 0 for stage in stages.values())
    devices = {name: stage.get("deviceSeconds", 0) for name, stage in stages.items()}
    assert devices["preflight"] == 0
    assert devices["train"] == stages["train"]["seconds"]
    assert devices["evaluate"] == stages["evaluate"]["seconds"]
    assert routing["status"]["cost"]["deviceSeconds"] == pytest.approx(
        devices["train"] + devices["evaluate"], abs=0.01
    )


def test_only_the_stages_that_need_a_gpu_ask_for_one(team: Team, routing: Object) -> None:
    asked = {
        pod["metadata"]["labels"][STAGE]: pod["spec"]["containers"][0]["resources"]["limits"].get(
            GPU_RESOURCE
        )
        for pod in team.children("pods", uid_of(routing))
    }
    assert asked == {"preflight": None, "train": "1", "evaluate": "1"}


def test_the_endpoint_answers_with_the_tuned_model_through_the_openai_sdk(
    team: Team, support: Object
) -> None:
    with open_endpoint(team.access, "support", team.namespace) as endpoint, endpoint.client() as client:
        assert sorted(model.id for model in client.models.list()) == ["base", "tuned"]
        for prompt in ("order late?", "a question that nobody asked before"):
            assert ask(client, "tuned", prompt) == "billing"
        assert ask(client, "base", "order late?") != "billing"


def test_the_endpoint_and_its_checkpoint_name_each_other(
    team: Team, routing: Object, support: Object
) -> None:
    checkpoint = team.checkpoint_of(routing)
    (served,) = support["status"]["models"]
    assert (served["name"], served["checkpoint"]) == ("tuned", name_of(checkpoint))
    assert served["digest"] == checkpoint["spec"]["digest"]
    assert support["status"]["url"] == f"http://support.{team.namespace}.svc/v1"
    assert support["status"]["cost"]["devices"] == support["spec"]["compute"]["devices"]
    eventually(
        "the checkpoint knows its endpoint",
        lambda: team.checkpoint_of(routing)["status"].get("inUseBy") == ["support"],
        describe=lambda: team.checkpoint_of(routing),
        pause=PAUSE_SECONDS,
    )


def test_kubectl_get_shows_the_columns_of_each_kind(
    team: Team, tickets: Object, routing: Object, support: Object
) -> None:
    checkpoint = team.checkpoint_of(routing)
    version = team.get("DatasetVersion", tickets["status"]["latestVersion"])
    score = "exact_match 1.00 (base 0.00)"
    shown = {
        ("ftj", "routing"): {"PHASE": "Succeeded", "PROGRESS": "100%", "SCORE": score, "ETA": ""},
        ("dset", "tickets"): {"LATEST": name_of(version), "ROWS": "24", "PROBLEMS": "0"},
        ("dsv", name_of(version)): {"DATASET": "tickets", "ROWS": "24", "DIGEST": version["spec"]["digest"]},
        ("ckpt", name_of(checkpoint)): {
            "MODEL-LINE": "routing", "STEP": "45", "SCORE": score, "PROMOTED": "True", "IN-USE": "support",
        },
        ("infd", "support"): {
            "MODELS": "tuned", "READY": "1/1",
            "REVISION": support["status"]["revision"], "URL": support["status"]["url"],
        },
        ("cprof", GPU): {"DEVICE": GPU_RESOURCE, "MAX": "2", "ENGINE": "Transformers"},
    }  # fmt: skip
    for (kind, name), expected in shown.items():
        found = columns(team.kubectl("get", kind, name))
        assert {title: found[title] for title in expected} == expected
    assert float(columns(team.kubectl("get", "ftj", "routing"))["LOSS"]) < 1


def columns(printed: str) -> dict[str, str]:
    """Cells of the only row of `kubectl get`, by header."""
    header, row = printed.splitlines()
    starts = [at for at, letter in enumerate(header) if letter != " " and (at == 0 or header[at - 1] == " ")]
    cells = [row[start:end].strip() for start, end in zip(starts, [*starts[1:], None], strict=True)]
    return dict(zip(header.split(), cells, strict=True))


def test_full_fine_tuning_leaves_all_weights_and_they_are_served(team: Team, begun: None) -> None:
    whole = team.until("FineTuneJob", "whole", "Ready")
    checkpoint = team.checkpoint_of(whole)
    assert checkpoint["spec"]["type"] == "Full"
    assert condition_of(checkpoint, "Promoted")["status"] == "True"
    team.until("InferenceDeployment", "whole", "Ready")
    with open_endpoint(team.access, "whole", team.namespace) as endpoint, endpoint.client() as client:
        assert ask(client, "tuned", "order late?") == "billing"


def test_a_run_continues_from_the_checkpoint_of_another_and_says_so(team: Team, routing: Object) -> None:
    parent = team.checkpoint_of(routing)
    team.apply(
        manifests.finetunejob(
            "continued",
            baseModel={"checkpoint": name_of(parent)},
            hyperparameters={"epochs": 1, "learningRate": 0.001},
        )
    )

    run = team.until("FineTuneJob", "continued", "Ready")

    resolved = run["status"]["resolved"]
    assert (resolved["parentCheckpoint"], resolved["parentDigest"]) == (
        name_of(parent),
        parent["spec"]["digest"],
    )
    checkpoint = team.get("Checkpoint", run["status"]["checkpoints"][-1]["name"])
    lineage = checkpoint["spec"]["lineage"]
    assert lineage["parentCheckpoint"] == name_of(parent)
    assert lineage["baseModel"] == parent["spec"]["lineage"]["baseModel"]
    # It starts from the Checkpoint of the other run, and not from the base model.
    (loss,) = checkpoint["spec"]["metrics"]
    assert loss["value"] < 1


def test_an_endpoint_is_scaled_as_a_deployment_is(team: Team, begun: None) -> None:
    uid = team.until("InferenceDeployment", "whole", "Ready")["metadata"]["uid"]
    (deployment,) = team.children("deployment", uid)
    team.kubectl("scale", "inferencedeployment/whole", "--replicas=0")
    eventually(
        "its pods are gone", lambda: not team.children("pod", uid), PATIENCE_SECONDS, pause=PAUSE_SECONDS
    )
    (scaled,) = team.children("deployment", uid)
    assert scaled["metadata"]["uid"] == deployment["metadata"]["uid"]
    assert columns(team.kubectl("get", "infd", "whole"))["READY"] == "0/0"


def test_a_run_that_misses_its_bar_stalls_and_nothing_is_rolled_out(team: Team, support: Object) -> None:
    unworthy = team.until("FineTuneJob", "unworthy", "Stalled", "GateFailed")
    assert "> 0.0001" in condition_of(unworthy, "Stalled")["message"]
    assert condition_of(unworthy, "Trained")["status"] == "True"
    assert condition_of(unworthy, "Evaluated")["status"] == "True"
    checkpoint = team.checkpoint_of(unworthy)
    assert condition_of(checkpoint, "Promoted")["reason"] == "GateFailed"
    assert "promotedAt" not in checkpoint["status"]
    revisions = team.get("InferenceDeployment", "support")["status"]["revisions"]
    assert [revision["state"] for revision in revisions] == ["Live"]


def test_what_it_made_goes_with_it_out_of_the_store_too(team: Team, keeper: Keeper, begun: None) -> None:
    checkpoint = team.checkpoint_of(team.until("FineTuneJob", "unworthy", "Stalled", "GateFailed"))
    folder = checkpoint["spec"]["uri"].removeprefix("pvc://artifacts/")
    assert "manifest.json" in keeper.run(f"ls /store/{folder}")
    team.kubectl("delete", "finetunejob", "unworthy")
    eventually(
        "its checkpoint is gone",
        lambda: not team.kubectl("get", "checkpoint", name_of(checkpoint), "--ignore-not-found"),
        PATIENCE_SECONDS,
        describe=lambda: team.describe("Checkpoint", name_of(checkpoint)),
        pause=PAUSE_SECONDS,
    )
    assert folder.rpartition("/")[2] not in keeper.run("ls /store/checkpoints")
