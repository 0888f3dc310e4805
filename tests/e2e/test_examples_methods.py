# SPDX-License-Identifier: Apache-2.0
"""The example `methods`: every run is accepted; DPO and QLoRA train, the others only in `make test-full`."""

import os
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.e2e import manifests
from tests.e2e.pods import Keeper
from tests.e2e.team import Team, condition_of
from tools.bootstrap.uv import ROOT
from tools.demo.access import Object

EXAMPLE: Final = ROOT / "examples" / "methods"
TRAINED: Final = ("dpo", "qlora")
RESTING: Final = ("dora", "full", "kto", "lora", "orpo", "rslora")
"""Runs that are applied suspended; the tests of tests/trainer train with all methods."""
DORA, KTO, ORPO = (pytest.param(name, marks=pytest.mark.full) for name in ("dora", "kto", "orpo"))
"""The suspended runs that `make test-full` resumes."""

SHORT: Final = {"epochs": 6, "learningRate": 0.01, "maxSequenceLength": 128}
"""24 steps, enough for the tiny model to learn the preferred answers."""


def run(name: str) -> str:
    return f"library-{name}"


def overlay(folder: Path) -> Path:
    """The example's rows and runs, with the changes that the tiny model needs."""
    for name in (*TRAINED, *RESTING):
        # kustomize accepts no file from outside its folder.
        (folder / f"{name}.yaml").write_text((EXAMPLE / f"{name}.yaml").read_text())
    changes: dict[str, Any] = {
        "baseModel": {"uri": manifests.MODEL_URI},
        "compute": {"profile": manifests.CPU},
        "hyperparameters": SHORT,
        "dataset": {"onLongRows": "Truncate"},
    }
    patches = [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": "artifacts"},
            "$patch": "delete",
        },
        *(manifests.of("FineTuneJob", run(name), changes) for name in TRAINED),
        *(manifests.of("FineTuneJob", run(name), {**changes, "suspend": True}) for name in RESTING),
    ]
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        # kustomize accepts no absolute path.
        "resources": [
            os.path.relpath(EXAMPLE, folder),
            *(f"{name}.yaml" for name in (*TRAINED, *RESTING)),
        ],
        "patches": [{"patch": yaml.safe_dump(patch)} for patch in patches],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return folder


def begin(team: Team, keeper: Keeper, request: pytest.FixtureRequest) -> None:
    folder = overlay(request.getfixturevalue("tmp_path_factory").mktemp("methods").resolve())
    team.kubectl("apply", "--server-side", "--force-conflicts", f"--kustomize={folder}")


def until_ended(team: Team, name: str) -> Object:
    """Wait until the run is complete; a suspended one is resumed before."""
    if name in RESTING:
        team.patch("finetunejob", run(name), {"suspend": False})
    return team.until("FineTuneJob", run(name), "Ready")


@pytest.mark.parametrize("name", RESTING)
def test_the_other_runs_are_taken_as_they_are(team: Team, begun: None, name: str) -> None:
    team.until("FineTuneJob", run(name), "Suspended")


@pytest.mark.parametrize("name", [*TRAINED, DORA, KTO, ORPO])
def test_a_run_of_the_method_ends_with_a_promoted_checkpoint(team: Team, begun: None, name: str) -> None:
    ended = until_ended(team, name)

    assert ended["status"]["evaluation"]["verdict"] == "Passed"
    assert condition_of(team.checkpoint_of(ended), "Promoted").get("status") == "True"


@pytest.mark.parametrize("name", ["dpo", KTO, ORPO])
def test_the_rewards_of_good_answers_have_risen_above_those_of_bad_ones(
    team: Team, begun: None, name: str
) -> None:
    ended = until_ended(team, name)

    assert ended["status"]["training"]["rewardMargin"] > 0
    assert "; reward margin " in condition_of(ended, "Trained")["message"]
    preference = ended["status"]["resolved"]["preference"]
    assert ("undesirableWeight" in preference) == (name == "kto")


@pytest.mark.parametrize("name", ["dpo", ORPO])
def test_the_tuned_model_prefers_what_people_chose_more_often_than_the_base_model(
    team: Team, begun: None, name: str
) -> None:
    ended = until_ended(team, name)

    shares = preferences(ended)
    assert shares["Tuned"] >= 0.8
    assert shares["Tuned"] > shares["Base"]


def preferences(ended: Object) -> dict[str, float]:
    return {
        score["subject"]: score["value"]
        for score in ended["status"]["evaluation"]["scores"]
        if score["metric"] == "preference_accuracy"
    }
