# SPDX-License-Identifier: Apache-2.0
"""What a Checkpoint says about how its weights are measured."""

from typing import Any

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.manifests.weights import EvaluatedWeights
from tests.unit.operator.runobjects import (
    BASE,
    CHECKPOINT,
    HYPERPARAMETERS,
    JOB,
    JOB_UID,
    WEIGHTS,
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


def test_weights_are_measured_as_they_were_trained() -> None:
    weights = EvaluatedWeights.of(checkpoint(method={"objective": "SFT", "type": "QLoRA"}))

    assert (weights.digest, weights.base_model, weights.type) == (WEIGHTS, BASE, "Adapter")
    assert weights.quantized_base
    assert weights.chat_template_kwargs == {"enable_thinking": False}
    assert weights.hyperparameters.max_sequence_length == HYPERPARAMETERS.max_sequence_length


def test_other_methods_are_measured_on_the_stored_weights_of_the_base_model() -> None:
    adapter = checkpoint(method={"objective": "SFT", "type": "LoRA"})
    assert not EvaluatedWeights.of(adapter).quantized_base
    full = checkpoint(type_="Full", method={"objective": "SFT", "type": "Full"})
    assert not EvaluatedWeights.of(full).quantized_base
