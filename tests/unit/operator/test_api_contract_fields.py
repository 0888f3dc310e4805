# SPDX-License-Identifier: Apache-2.0
"""Fields that API and contract share: the API bounds them, and the contract accepts all values."""

import pytest
from pydantic import BaseModel, ValidationError

from finetune_operator.api.dataset_version import DatasetStatistics
from finetune_operator.api.serving import DefaultSampling
from finetune_operator.api.training import (
    Hyperparameters,
    LearningCurvePoint,
    LoRA,
    Preference,
    ResolvedHyperparameters,
    ResolvedLoRA,
)
from finetune_trainer.contract import hyperparameters, method, results, serving
from finetune_trainer.contract.evaluation import MetricOptions

OF_OTHER_PARTS = {"save_every_steps", "validate_every_steps", "early_stopping_patience", "on_long_rows"}
"""Hyperparameters of the trainer that other parts of the spec set."""

PAIRS: list[tuple[type[BaseModel], type[BaseModel], set[str]]] = [
    (Hyperparameters, hyperparameters.RequestedHyperparameters, OF_OTHER_PARTS),
    (ResolvedHyperparameters, hyperparameters.Hyperparameters, set()),
    (LoRA, method.RequestedLoRA, set()),
    (ResolvedLoRA, method.LoRA, set()),
    (Preference, method.Preference, set()),
    (DefaultSampling, serving.DefaultSampling, set()),
    (DatasetStatistics, results.DataStatistics, set()),
    (LearningCurvePoint, results.LearningCurvePoint, set()),
]


@pytest.mark.parametrize(("shown", "sent", "elsewhere"), PAIRS)
def test_the_contract_sends_the_fields_of_the_api(
    shown: type[BaseModel], sent: type[BaseModel], elsewhere: set[str]
) -> None:
    assert [name for name in sent.model_fields if name not in elsewhere] == list(shown.model_fields)


@pytest.mark.parametrize(
    ("shown", "sent", "beyond"),
    [
        (Hyperparameters, hyperparameters.RequestedHyperparameters, {"epochs": 1001}),
        (LoRA, method.RequestedLoRA, {"target_modules": tuple(map(str, range(33)))}),
        (Preference, method.Preference, {"desirable_weight": 1001.0}),
        (DatasetStatistics, results.DataStatistics, {"source_rows": -1}),
        (LearningCurvePoint, results.LearningCurvePoint, {"share": 1.0, "rows": 9, "problem": "x" * 513}),
    ],
)
def test_a_value_beyond_the_bounds_of_the_api_is_data_for_the_contract(
    shown: type[BaseModel], sent: type[BaseModel], beyond: dict[str, object]
) -> None:
    with pytest.raises(ValidationError):
        shown.model_validate(beyond)
    assert sent.model_validate(beyond).model_dump(exclude_defaults=True) == beyond


def test_the_wire_form_has_its_fields_in_the_order_of_their_declaration() -> None:
    asked = hyperparameters.RequestedHyperparameters(
        gradient_checkpointing=True, early_stopping_patience=2, save_every_steps=50, seed=1
    )
    assert asked.to_json() == (
        '{"seed":1,"gradientCheckpointing":true,"saveEverySteps":50,"earlyStoppingPatience":2}'
    )
    assert method.LoRA(rslora=True).to_json() == '{"rslora":true}'
    assert LoRA(rslora=True).to_dict()["rsLoRA"] is True


def test_a_field_that_has_the_name_of_a_bound_is_still_a_field() -> None:
    assert MetricOptions(pattern="a+").to_dict() == {"pattern": "a+"}
    assert MetricOptions().pattern is None
