# SPDX-License-Identifier: Apache-2.0
"""What a Checkpoint says about how its weights are measured."""

from typing import Any

import pytest

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.manifests.evaluatedweights import EvaluatedWeights
from tests.unit.operator.runobjects import (
    BASE,
    CHECKPOINT,
    HYPERPARAMETERS,
    JOB,
    JOB_UID,
    WEIGHTS,
    finetunejob,
)


def checkpoint(type_: str = "Adapter", **lineage: Any) -> Checkpoint:
    spec = {
        "modelLine": "ticket-routing",
        "digest": WEIGHTS,
        "type": type_,
        "step": 40,
        "epoch": 3,
        "uri": f"pvc://artifacts/checkpoints/{'c' * 64}",
        "lineage": {
            "baseModel": {"uri": "pvc://models/gemma", "digest": BASE},
            "datasetVersion": "tickets-1",
            "job": {"name": JOB, "uid": JOB_UID},
            "hyperparameters": HYPERPARAMETERS.to_dict(),
            "chatTemplateKwargs": {"enable_thinking": False},
            "trainerImage": "finetune-trainer:1",
            **lineage,
        },
    }
    return Checkpoint.model_validate({"metadata": {"name": CHECKPOINT}, "spec": spec})


def run(method: str) -> FineTuneJob:
    return FineTuneJob.model_validate(finetunejob(method={"type": method}))


def test_weights_are_measured_as_they_were_trained() -> None:
    weights = EvaluatedWeights.of(checkpoint(method={"objective": "SFT", "type": "QLoRA"}), None)

    assert weights is not None
    assert (weights.digest, weights.base_model, weights.type) == (WEIGHTS, BASE, "Adapter")
    assert weights.quantized_base
    assert weights.chat_template_kwargs == {"enable_thinking": False}
    assert weights.hyperparameters.max_sequence_length == HYPERPARAMETERS.max_sequence_length


@pytest.mark.parametrize(("method", "quantized"), [("LoRA", False), ("QLoRA", True)])
def test_the_run_says_what_an_older_checkpoint_does_not(method: str, quantized: bool) -> None:
    weights = EvaluatedWeights.of(checkpoint(), run(method))

    assert weights is not None
    assert weights.quantized_base == quantized


def test_without_the_run_it_is_unknown_how_an_older_adapter_was_trained() -> None:
    assert EvaluatedWeights.of(checkpoint(), None) is None
    full = EvaluatedWeights.of(checkpoint(type_="Full"), None)
    assert full is not None
    assert not full.quantized_base
