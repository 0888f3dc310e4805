# SPDX-License-Identifier: Apache-2.0
"""The config that a container reads is the one that the operator built."""

import pytest

from finetune_operator.manifests.trainer_config import config_variable, escape_variables
from finetune_trainer.contract.own_metrics import Judge
from tests.unit.operator.kubernetesexpansion import expanded

TEXTS = ("$$x^2$$ is better than x*x", "$(HOME)", "$$(HOME)", "costs $5", "$", "a\\$$b", "")


@pytest.mark.parametrize("text", TEXTS)
def test_no_text_of_a_config_is_replaced_by_kubernetes(text: str) -> None:
    judge = Judge(name="math", endpoint="https://judge.example/v1", model="m", instructions=text or "-")
    variable = config_variable(judge)
    assert Judge.model_validate_json(expanded(variable["value"])) == judge


@pytest.mark.parametrize("text", TEXTS)
def test_no_argument_is_replaced_by_kubernetes(text: str) -> None:
    assert expanded(escape_variables(text)) == text
