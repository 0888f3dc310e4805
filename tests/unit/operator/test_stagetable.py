# SPDX-License-Identifier: Apache-2.0
"""The table of stages: what the API and the contract say of stages agrees with it."""

from typing import get_args

import pytest

from finetune_operator.api.compute import PerStage, PerWorkload
from finetune_operator.api.finetune_job_status import ProgressStatus
from finetune_operator.api.meta import Model
from finetune_operator.api.pod_template import DEVICE_STAGES, SIZED_STAGES, PodStage
from finetune_operator.api.stage_status import RetryStatus, StageStatus, StageUsage
from finetune_operator.stage_table import SERVE_PODS, STAGES, Queue, pod_names
from finetune_operator.status.explanations import UNDER_WAY
from finetune_trainer.contract.vocabulary import ResultStage, Stage

WITH_RESULTS = [name for name, row in STAGES.items() if row.running is not None]


def test_every_stage_of_the_contract_has_a_row_and_every_job_stage_one() -> None:
    assert set(get_args(Stage)) == set(WITH_RESULTS)
    assert {*get_args(ResultStage), "collect", "cleanup", "download", "fill", "merge"} == set(STAGES)
    assert {name for name, row in STAGES.items() if row.condition is not None} == set(WITH_RESULTS)


def test_a_profile_has_a_queue_for_each_that_stages_use() -> None:
    assert {row.queue for row in STAGES.values()} == set(get_args(Queue))
    assert set(get_args(Queue)) <= set(PerStage.model_fields)
    assert set(PerStage.model_fields) <= set(PerWorkload.model_fields)


def test_each_name_in_an_entry_of_a_profile_is_that_of_some_pods() -> None:
    assert {name for stage in STAGES for name in pod_names(stage)} | SERVE_PODS == set(get_args(PodStage))
    assert {stage for stage in STAGES if "cpu" not in pod_names(stage)} | SERVE_PODS == set(DEVICE_STAGES)
    for stage in STAGES:
        assert pod_names(stage) - {"cpu"} == {stage} & set(SIZED_STAGES)


@pytest.mark.parametrize(
    ("model", "field"),
    [(ProgressStatus, "stage"), (StageStatus, "name"), (StageUsage, "name"), (RetryStatus, "stage")],
)
def test_statuses_name_the_stages_that_have_results(model: type[Model], field: str) -> None:
    assert set(get_args(model.model_fields[field].annotation)) == set(WITH_RESULTS)


def test_devices_of_a_pod_follow_from_the_row() -> None:
    assert {name: row.devices_of(4) for name, row in STAGES.items() if row.uses_devices} == {
        "train": 4,
        "evaluate": 1,
    }
    assert STAGES["evaluate"].devices_of(4, one_holds_model=False) == 4


def test_a_running_stage_needs_no_one_to_act() -> None:
    assert {row.running for row in STAGES.values() if row.running is not None} <= UNDER_WAY
