# SPDX-License-Identifier: Apache-2.0
"""Preflight predicts a model of 8B on cards that the cluster does not have, before it asks for one."""

import json
import shutil
from pathlib import Path
from typing import Final

import pytest

from finetune_client.backend import Object
from tests.e2e import manifests
from tests.e2e.pods import Keeper
from tests.e2e.team import Team, condition_of, uid_of
from tools.cluster.node import GPU_RESOURCE
from tools.models import tiny
from tools.models.llama import LLAMA

CARDS: Final = {
    f"e2e-h100-{manifests.OWN}": "NVIDIA-H100-80GB-HBM3",
    f"e2e-l4-{manifests.OWN}": "NVIDIA-L4",
}
H100, L4 = CARDS
LLAMA_8B: Final = {
    **LLAMA["8B"],
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    "rms_norm_eps": 1e-05,
    "dtype": "bfloat16",
}
"""The shapes of Llama 3.1 8B. Its weights are those of the tiny model: preflight reads none."""
LONG_ANSWER: Final = "billing " * 1500
"""About 6,000 tokens."""
GIBIBYTE: Final = 1 << 30

pytestmark = pytest.mark.usefixtures("begun")


def begin(team: Team, keeper: Keeper, request: pytest.FixtureRequest) -> None:
    """Create profiles whose nodes do not exist, the model, and runs that wait for them or are refused."""
    profiles = [card_profile(name, product) for name, product in CARDS.items()]
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": profiles})
    request.addfinalizer(lambda: team.access.kubectl("delete", "computeprofiles", *CARDS))
    team.access.kubectl("apply", "--server-side", "--filename=-", text=text)
    folder: Path = request.getfixturevalue("tmp_path_factory").mktemp("models") / "llama-8b"
    shutil.copytree(tiny(), folder)
    (folder / "config.json").write_text(json.dumps(LLAMA_8B))
    keeper.copy(folder, "/models/llama-8b")
    long = manifests.own_rows("long-answers")
    team.apply(
        manifests.configmap("long-answers", manifests.jsonl(LONG_ANSWER)),
        of_8b("on-h100", H100),
        of_8b("long-on-l4", L4, dataset=long),
        of_8b("full-on-l4", L4, dataset=long, method={"type": "Full"}),
    )


def card_profile(name: str, product: str) -> Object:
    """A profile of a known card. No node has its label; the pods of train get the predicted memory."""
    profile = manifests.profile(name, GPU_RESOURCE)
    spec = profile["spec"]
    sizes = {stage: size for stage, size in manifests.SMALL.items() if stage not in ("train", "evaluate")}
    with_devices = {"stages": ["train", "evaluate", "serve"]}
    placed = {**with_devices, "nodeSelector": {"nvidia.com/gpu.product": product}}
    spec["pods"] = [placed, *manifests.sized(sizes)]
    spec["cost"] = {"pricePerDeviceHour": 3, "currency": "EUR"}
    return profile


def of_8b(name: str, profile: str, **spec: object) -> Object:
    return manifests.finetunejob(
        name,
        **{
            "baseModel": {"uri": "pvc://models/llama-8b"},
            "compute": {"profile": profile},
            "hyperparameters": {},
            **spec,
        },
    )


def test_a_run_is_predicted_and_its_pod_sized_before_a_device_is_had(team: Team) -> None:
    run = team.until("FineTuneJob", "on-h100", "Reconciling", "Unschedulable")

    predicted = run["status"]["prediction"]
    assert (predicted["verdict"], predicted["device"]) == ("Fits", "NVIDIA-H100-80GB-HBM3")
    assert 15 * GIBIBYTE < predicted["deviceMemoryBytes"] < 40 * GIBIBYTE
    (pod,) = team.children("pods", uid_of(run), "train")
    (container,) = pod["spec"]["containers"]
    assert container["resources"]["requests"]["memory"] not in ("", "2Gi")
    assert " on one H100, " in condition_of(run, "Preflighted")["message"]
    wide = team.kubectl("get", "finetunejob", "on-h100", "--output=wide")
    assert "of 80 GiB, EUR" in wide


def test_settings_are_chosen_that_fit_the_card(team: Team) -> None:
    run = team.until("FineTuneJob", "long-on-l4", "Reconciling", "Unschedulable")

    status = run["status"]
    assert status["resolved"]["hyperparameters"]["gradientCheckpointing"] is True
    assert any("gradient checkpointing" in sentence for sentence in status["prediction"]["chosen"])
    assert status["prediction"]["verdict"] == "Fits"


def test_a_run_that_cannot_fit_is_refused_with_figures_and_what_would(team: Team) -> None:
    run = team.until("FineTuneJob", "full-on-l4", "Stalled", "PredictedOutOfMemory")

    message = condition_of(run, "Stalled")["message"]
    assert "GiB per device of 22" in message
    assert "QLoRA needs" in message
    jobs = team.children("jobs", uid_of(run))
    assert {job["metadata"]["labels"]["finetune.dev/stage"] for job in jobs} == {"prepare", "preflight"}
