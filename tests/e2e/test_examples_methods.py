# SPDX-License-Identifier: Apache-2.0
"""The example `methods`: every run is accepted.

The chain of SFT and DPO trains, and QLoRA; the others only in `make test-full`.
"""

import os
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from finetune_client.backend import Object
from tests.e2e import manifests
from tests.e2e.pods import Keeper
from tests.e2e.team import Team, condition_of, name_of
from tools.bootstrap.uv import ROOT

EXAMPLE: Final = ROOT / "examples" / "methods"
CHAIN: Final = ("first", "second")
"""The runs of chain.yaml: the second continues with DPO from the champion that the first becomes."""
TRAINED: Final = (*CHAIN, "qlora")
RESTING: Final = ("dora", "dpo", "full", "kto", "lora", "orpo", "rslora")
"""Runs that are applied suspended; the tests of tests/trainer train with all methods."""
DORA, DPO, KTO, ORPO = (pytest.param(name, marks=pytest.mark.full) for name in ("dora", "dpo", "kto", "orpo"))
"""The suspended runs that `make test-full` resumes."""

SHORT: Final = {"epochs": 6, "learningRate": 0.01, "maxSequenceLength": 128}
"""24 steps, enough for the tiny model to learn the preferred answers."""


def run(name: str) -> str:
    return f"library-{name}"


def overlay(folder: Path) -> Path:
    """The example's rows and runs, with the changes that the tiny model needs."""
    files = ("chain.yaml", "qlora.yaml", *(f"{name}.yaml" for name in RESTING))
    for name in files:
        # kustomize accepts no file from outside its folder.
        (folder / name).write_text((EXAMPLE / name).read_text())
    model = {"baseModel": {"uri": manifests.MODEL_URI}}
    changes: dict[str, Any] = {
        "compute": {"profile": manifests.CPU},
        "hyperparameters": SHORT,
        "dataset": {"onLongRows": "Truncate"},
    }
    patches = [
        manifests.left_out(manifests.claim("artifacts")),
        manifests.of("FineTuneJob", run("second"), changes),
        *(manifests.of("FineTuneJob", run(name), {**model, **changes}) for name in ("first", "qlora")),
        *(manifests.of("FineTuneJob", run(name), {**model, **changes, "suspend": True}) for name in RESTING),
    ]
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        # kustomize accepts no absolute path.
        "resources": [os.path.relpath(EXAMPLE, folder), *files],
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


@pytest.mark.parametrize("name", [*TRAINED, DORA, DPO, KTO, ORPO])
def test_a_run_of_the_method_ends_with_a_promoted_checkpoint(team: Team, begun: None, name: str) -> None:
    ended = until_ended(team, name)

    assert ended["status"]["evaluation"]["verdict"] == "Passed"
    assert condition_of(team.checkpoint_of(ended), "Promoted").get("status") == "True"


def test_the_second_run_of_a_chain_continues_from_what_the_first_one_became(team: Team, begun: None) -> None:
    first, second = (until_ended(team, name) for name in CHAIN)

    resolved = second["status"]["resolved"]
    assert resolved["parentCheckpoint"] == name_of(team.checkpoint_of(first))
    assert resolved["baseModelUri"] == manifests.MODEL_URI
    assert team.checkpoint_of(second)["spec"]["modelLine"] == first["spec"]["modelLine"]


@pytest.mark.parametrize("name", ["second", DPO, KTO, ORPO])
def test_the_rewards_of_good_answers_have_risen_above_those_of_bad_ones(
    team: Team, begun: None, name: str
) -> None:
    ended = until_ended(team, name)

    assert ended["status"]["training"]["rewardMargin"] > 0
    assert "; reward margin " in condition_of(ended, "Trained")["message"]
    preference = ended["status"]["resolved"]["preference"]
    assert ("undesirableWeight" in preference) == (name == "kto")


@pytest.mark.parametrize("name", ["second", DPO, ORPO])
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
