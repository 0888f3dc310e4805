# SPDX-License-Identifier: Apache-2.0
"""Sweeps on a real API server: runs with different values, early stopping, cancellation."""

from typing import Any

import pytest

from finetune_trainer.contract.configs import StageConfig, TrainConfig
from finetune_trainer.contract.results import Progress, StageResult
from tests.fakekubelet import FakeKubelet
from tests.integration import manifests
from tests.integration.api import Api, Object
from tests.integration.chain import until_condition
from tests.integration.manifests import is_true
from tests.integration.operators import Operator, Operators
from tests.integration.trainingpod import TrainingPod
from tests.waiting import eventually
from tools.fakepods import succeeded

POD_IP = "10.20.30.41"
SWEEP = "rates"


def with_validation_loss(config: StageConfig) -> StageResult | None:
    """A higher rank has a lower validation loss."""
    result = succeeded(config)
    if not isinstance(config, TrainConfig) or result.train is None:
        return result
    loss = 1 / config.method.lora.r
    made = tuple(each.model_copy(update={"validation_loss": loss}) for each in result.train.checkpoints)
    return result.model_copy(update={"train": result.train.model_copy(update={"checkpoints": made})})


@pytest.fixture
def outcome() -> object:
    return with_validation_loss


@pytest.fixture
def operator(operators: Operators, kubelet: FakeKubelet) -> Operator:
    return operators.start(POD_IP=POD_IP).wait_active()


def sweep(api: Api, namespace: str, **spec: Any) -> None:
    api.create(manifests.dataset(namespace))
    api.create(manifests.finetunesweep(namespace, manifests.finetunejob(namespace)["spec"], **spec))


def status(api: Api, namespace: str) -> Object:
    found: Object = (api.get("FineTuneSweep", namespace, SWEEP) or {}).get("status", {})
    return found


def until_trials(api: Api, namespace: str, operator: Operator, *states: str) -> list[Object]:
    def found() -> list[Object] | None:
        trials: list[Object] = status(api, namespace).get("trials", [])
        return trials if [each["state"] for each in trials] == list(states) else None

    return eventually(
        f"the trials are {states}",
        found,
        60,
        lambda: f"{status(api, namespace)}\n{operator.log[-4000:]}",
    )


def until_recorded(api: Api, namespace: str, operator: Operator, loss: float) -> None:
    def is_recorded() -> bool:
        return [loss] in [each.get("rungs") for each in status(api, namespace)["trials"]]

    eventually("the rung is recorded", is_recorded, 30, lambda: operator.log[-4000:])


def test_the_run_with_the_best_values_is_promoted_and_runs_outlive_their_sweep(
    api: Api, namespace: str, operator: Operator
) -> None:
    sweep(api, namespace)
    ended = until_condition(api, (namespace, "FineTuneSweep", SWEEP), "Ready", operator)["status"]

    assert [each["values"]["method.lora.r"] for each in ended["trials"]] == ["8", "16"]
    assert [each["objective"] for each in ended["trials"]] == [1 / 8, 1 / 16]
    assert ended["best"]["name"] == ended["trials"][1]["name"]
    best = api.get("FineTuneJob", namespace, ended["run"])
    assert best is not None
    assert best["spec"]["method"]["lora"]["r"] == 16
    assert is_true(best, "Evaluated")
    promoted = [
        each["spec"]["lineage"]["job"]["name"]
        for each in api.list("Checkpoint", namespace)
        if is_true(each, "Promoted")
    ]
    assert promoted == [ended["run"]]
    for trial in ended["trials"]:
        run = api.get("FineTuneJob", namespace, trial["name"])
        assert run is not None
        assert not is_true(run, "Evaluated")

    api.delete("FineTuneSweep", namespace, SWEEP)
    eventually("the sweep is gone", lambda: api.get("FineTuneSweep", namespace, SWEEP) is None)
    assert len(api.list("FineTuneJob", namespace)) == 3


def test_a_trial_with_a_higher_loss_at_a_rung_is_cancelled(
    api: Api, namespace: str, operator: Operator, kubelet: FakeKubelet
) -> None:
    kubelet.held = {"train"}
    halving = {"reductionFactor": 2, "minFraction": 0.5}
    sweep(api, namespace, parallelTrials=2, earlyStopping=halving)
    trials = until_trials(api, namespace, operator, "Running", "Running")
    for trial, loss in zip(trials, (0.5, 0.7), strict=True):
        pod = TrainingPod(api, namespace, operator, run=trial["name"])
        report = pod.report(30)
        progress = Progress(step=30, total_steps=40, validation_loss=loss, validation_step=20)
        assert pod.post(report.model_copy(update={"progress": progress}).to_json()).status_code == 204
        until_recorded(api, namespace, operator, loss)
    until_trials(api, namespace, operator, "Running", "Stopped")
    stopped = trials[1]["name"]
    run = until_condition(api, (namespace, "FineTuneJob", stopped), "Stalled", operator)
    assert run["spec"]["cancel"] is True
    assert run["status"]["phase"] == "Cancelled"

    kubelet.held.clear()
    ended = until_condition(api, (namespace, "FineTuneSweep", SWEEP), "Ready", operator)["status"]
    assert ended["best"]["name"] == trials[0]["name"]
    assert ended["display"]["trials"] == "2/2 (1 stopped)"


def test_a_cancelled_sweep_cancels_its_trials_and_its_limits_can_change(
    api: Api, namespace: str, operator: Operator, kubelet: FakeKubelet
) -> None:
    kubelet.held = {"train"}
    sweep(api, namespace)
    until_trials(api, namespace, operator, "Running")
    api.patch("FineTuneSweep", namespace, SWEEP, {"spec": {"parallelTrials": 2}})
    trials = until_trials(api, namespace, operator, "Running", "Running")
    api.patch("FineTuneSweep", namespace, SWEEP, {"spec": {"cancel": True}})
    until_condition(api, (namespace, "FineTuneSweep", SWEEP), "Stalled", operator)
    assert status(api, namespace)["phase"] == "Cancelled"
    for trial in trials:
        assert is_true(api.get("FineTuneJob", namespace, trial["name"]), "Stalled")
