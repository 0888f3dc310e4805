# SPDX-License-Identifier: Apache-2.0
"""The example `brand-voice`, applied with kustomize: from rows in CSV to an answer, with an approval.

And the example of an endpoint of a base model alone.
"""

import os
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from finetune_client.backend import Object
from finetune_client.endpoint import ask, open_endpoint
from tests.e2e import manifests
from tests.e2e.pods import Keeper
from tests.e2e.team import Team, condition_of, name_of
from tools.bootstrap.uv import ROOT

EXAMPLE: Final = ROOT / "examples" / "brand-voice"
BASE_MODEL: Final = ROOT / "examples" / "base-model.yaml"
NAME: Final = "brand-voice"
"""Name of the run, its model line, its endpoint and the served model."""

BRIEF: Final = "alloy wheel rim tape, 7 mm, reflective, 4 wheels"
"""The brief of the test split in the request on the example's page."""

HERE: Final[dict[str, Any]] = {
    "baseModel": {"uri": manifests.MODEL_URI},
    "compute": {"profile": manifests.CPU},
}
"""What is another model and another profile here than in the example, which names no profile."""

SHORT: Final = {"epochs": 1, "learningRate": 0.01, "maxSequenceLength": 128}
"""24 steps, seconds in all, over the first tokens of each row. In so few, the tiny model clears the gate at
this rate, and not at the one that would be chosen for it."""


def overlay(folder: Path) -> Path:
    """A kustomization in `folder` over the example's own, with the least changes that the tiny model needs.

    The rows, their preparation, the gate and the way of promotion are the example's. Its claim is left out,
    because the team has one of this name, and a claim's size and access modes are for good.
    """
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        # kustomize accepts no absolute path.
        "resources": [os.path.relpath(EXAMPLE, folder)],
        "patches": [
            {"patch": yaml.safe_dump(patch)}
            for patch in (
                manifests.left_out(manifests.claim("artifacts")),
                manifests.of(
                    "FineTuneJob",
                    NAME,
                    {**HERE, "hyperparameters": SHORT, "dataset": {"onLongRows": "Truncate"}},
                ),
                manifests.of("InferenceDeployment", NAME, HERE),
            )
        ],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return folder


def begin(team: Team, keeper: Keeper, request: pytest.FixtureRequest) -> None:
    """Create the example in the team's namespace, with the tiny model on its claim."""
    # Without links, so that the relative path to the example is valid for kustomize.
    folder = overlay(request.getfixturevalue("tmp_path_factory").mktemp("brand-voice").resolve())
    team.kubectl("apply", "--server-side", "--force-conflicts", f"--kustomize={folder}")
    endpoint = yaml.safe_load(BASE_MODEL.read_text())
    team.apply({**endpoint, "spec": {**endpoint["spec"], **HERE}})


@pytest.fixture(scope="module")
def judged(team: Team, begun: None) -> Object:
    """The run when it has passed its gate and waits for approval."""
    return team.until("FineTuneJob", NAME, "Ready", "AwaitingApproval")


def test_the_rows_are_prepared_as_they_are_in_the_example(team: Team, begun: None) -> None:
    dataset = team.until("Dataset", "products", "Ready")

    status = dataset["status"]
    assert (status["format"], status["problemCount"]) == ("CSV", 0)
    assert status["rows"] >= 200
    version = team.get("DatasetVersion", status["latestVersion"])
    splits = {split["name"]: split["rows"] for split in version["spec"]["splits"]}
    assert set(splits) == {"train", "validation", "test"}
    assert min(splits.values()) > 0
    assert sum(splits.values()) == status["rows"]


def test_the_run_is_judged_by_its_gain_in_loss_alone(team: Team, judged: Object) -> None:
    evaluation = judged["status"]["evaluation"]
    scores = {(score["metric"], score["subject"]): score["value"] for score in evaluation["scores"]}
    metrics = ("loss", "chrf", "regex_match")
    assert set(scores) == {(metric, subject) for metric in metrics for subject in ("Tuned", "Base")}
    (gate,) = evaluation["gates"]
    assert (gate["metric"], gate["verdict"]) == ("loss", "Passed")
    assert scores["loss", "Base"] - scores["loss", "Tuned"] >= 0.3
    assert judged["status"]["resolved"]["datasetVersion"].startswith("products-")


def test_nothing_is_served_until_a_person_approves_and_then_the_endpoint_answers(
    team: Team, judged: Object
) -> None:
    checkpoint = team.checkpoint_of(judged)
    assert condition_of(checkpoint, "Promoted").get("status") != "True"
    team.until("InferenceDeployment", NAME, "Reconciling", "WaitingForCheckpoint")

    approval = {"state": "Approved", "reason": "read the answers"}
    team.patch("checkpoint", name_of(checkpoint), {"approval": approval})

    endpoint = team.until("InferenceDeployment", NAME, "Ready")
    (served,) = endpoint["status"]["models"]
    assert (served["name"], served["checkpoint"]) == (NAME, name_of(checkpoint))
    with open_endpoint(team.access, NAME, team.namespace) as found, found.client() as client:
        assert sorted(model.id for model in client.models.list()) == ["base", NAME]
        # Random weights answer with noise; that the texts differ shows which model answered.
        assert ask(client, NAME, BRIEF) != ask(client, "base", BRIEF)


def test_an_endpoint_of_a_base_model_alone_answers(team: Team, begun: None) -> None:
    name = yaml.safe_load(BASE_MODEL.read_text())["metadata"]["name"]

    team.until("InferenceDeployment", name, "Ready")

    with open_endpoint(team.access, name, team.namespace) as found, found.client() as client:
        assert [model.id for model in client.models.list()] == [name]
        assert ask(client, name, BRIEF)
