# SPDX-License-Identifier: Apache-2.0
"""Runs that continue from the champion of a model line, on a real API server."""

from collections.abc import Callable
from typing import Any

import pytest

from finetune_trainer.contract.configs import PreflightConfig, StageConfig
from finetune_trainer.contract.results import StageResult
from finetune_trainer.contract.vocabulary import FailureReason
from tests.fakekubelet import FakeKubelet
from tests.integration import manifests
from tests.integration.api import Api, Object
from tests.integration.chain import jobs_of_stage, until_condition
from tests.integration.operators import Operators
from tests.integration.team import BASE, Team
from tools.fakepods import digest, succeeded

OTHER = "pvc://models/other"
FOUND = digest("base", OTHER)


def other_is_refused(config: StageConfig) -> StageResult:
    """Success, but preflight finds that OTHER is not the base model of a champion."""
    if not isinstance(config, PreflightConfig) or not config.base_model_named:
        return succeeded(config)
    if config.base_model_uri != OTHER:
        return succeeded(config)
    told = f"baseModel.uri {OTHER}: its digest is {FOUND}, but the champion is of {config.base_model_digest}"
    failed = StageResult(
        stage="preflight",
        run=config.run,
        outcome="Failed",
        reason=FailureReason.BASE_MODEL_MISMATCH,
        message=told,
    )
    return config.bind(failed)


@pytest.fixture
def outcome() -> Callable[[StageConfig], StageResult]:
    return other_is_refused


@pytest.fixture
def team(api: Api, namespace: str, operators: Operators, kubelet: FakeKubelet) -> Team:
    api.create(manifests.dataset(namespace))
    return Team(api, namespace, operators.start().wait_active())


def start(team: Team, name: str, base_model: Object, **spec: Any) -> None:
    team.api.create(manifests.finetunejob(team.namespace, name, baseModel=base_model, **spec))


def until_ready(team: Team, name: str) -> Object:
    return until_condition(team.api, (team.namespace, "FineTuneJob", name), "Ready", team.operator)


def lineage(team: Team, run: Object) -> Object:
    (made,) = run["status"]["checkpoints"]
    record = team.api.get("Checkpoint", team.namespace, made["name"])
    assert record is not None
    found: Object = record["spec"]["lineage"]
    return found


def test_a_chain_in_one_commit_runs_in_order_and_a_start_of_its_own_waits_for_nothing(
    team: Team, kubelet: FakeKubelet
) -> None:
    kubelet.held.add("train")
    line = {"champion": {"modelLine": "ticket-routing"}}
    start(team, "second", {"champion": {}})
    start(team, "of-another-line", line, modelLine="ticket-answers")
    start(team, "from-its-start", {**line, "uri": OTHER}, modelLine="ticket-summaries")
    for name in ("second", "of-another-line"):
        message = team.until_reason("FineTuneJob", name, "Reconciling", "WaitingForChampion")
        assert "waiting for the first champion of model line ticket-routing" in message
    team.until_reason("FineTuneJob", "from-its-start", "Reconciling", "Training")
    assert len(jobs_of_stage(team.api, team.namespace, "preflight")) == 1

    start(team, "first", {"uri": "pvc://models/tiny"})
    kubelet.held.clear()
    first = until_ready(team, "first")
    (champion,) = (each["name"] for each in first["status"]["checkpoints"])
    for name in ("second", "of-another-line"):
        run = until_ready(team, name)
        assert run["status"]["resolved"]["parentCheckpoint"] == champion
        found = lineage(team, run)
        assert found["parentCheckpoint"] == champion
        assert (found["baseModel"]["uri"], found["baseModel"]["digest"]) == ("pvc://models/tiny", BASE)
    found = lineage(team, until_ready(team, "from-its-start"))
    assert "parentCheckpoint" not in found
    assert (found["baseModel"]["uri"], found["baseModel"]["digest"]) == (OTHER, FOUND)


def test_every_start_of_a_run_in_a_line_with_a_champion_works_or_says_what_is_wrong(team: Team) -> None:
    team.record("adapter")
    team.judge("adapter", "Approved")
    team.until_reason("Checkpoint", "adapter", "Promoted", "Promoted")

    start(team, "same-base", {"champion": {}, "uri": "pvc://models/tiny"})
    start(team, "other-base", {"champion": {}, "uri": OTHER})
    start(team, "other-digest", {"champion": {}, "digest": FOUND})
    start(team, "all-weights", {"champion": {}}, method={"type": "Full"})
    start(team, "by-name", {"checkpoint": "adapter"})

    for name in ("other-base", "other-digest"):
        message = team.until_reason("FineTuneJob", name, "Stalled", "BaseModelMismatch")
        assert BASE in message
        assert FOUND in message
    message = team.until_reason("FineTuneJob", "all-weights", "Stalled", "InvalidSpec")
    assert "Full cannot continue from champion adapter of model line ticket-routing" in message
    for name in ("same-base", "by-name"):
        assert lineage(team, until_ready(team, name))["parentCheckpoint"] == "adapter"
