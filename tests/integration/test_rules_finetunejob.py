# SPDX-License-Identifier: Apache-2.0
"""Every pair of values of a FineTuneJob that a rule compares, and what clients say of a habit."""

from typing import Any

import pytest

from finetune_operator.api.crd import KINDS_BY_NAME
from finetune_trainer.contract.method import METHODS, OBJECTIVES, TYPES, types_of
from finetune_trainer.contract.vocabulary import join_names
from tests.integration.api import Api, Object
from tests.integration.rules import files
from tests.integration.rules.requests import try_create
from tests.mergepatch import merged

GATES = [{"metric": "exact_match", "min": 0.8}]


def job(**spec: Any) -> Object:
    minimal: Object = files.minimal(KINDS_BY_NAME["FineTuneJob"])
    patched: Object = merged(minimal, {"spec": spec})
    return patched


def test_every_pair_of_objective_and_type_is_accepted_or_refused_with_what_to_set(api: Api) -> None:
    for objective in OBJECTIVES:
        for type_ in TYPES:
            verdict = try_create(api, job(method={"objective": objective, "type": type_}))
            if (objective, type_) in METHODS:
                assert verdict.accepted, verdict.message
                continue
            (message,) = verdict.messages_of("spec.method.type")
            # Kubernetes 1.34 quotes the type of the value before the sentence.
            assert message.startswith("Invalid value: ")
            assert f"method.objective: {objective} with method.type " in message
            assert "is not in this release" in message
            assert message.endswith(f"set method.type: {join_names(types_of(objective), 'or')}")


def test_a_word_in_the_wrong_field_is_refused_whatever_the_other_field_says(api: Api) -> None:
    for objective in OBJECTIVES:
        for word in OBJECTIVES:
            messages = try_create(api, job(method={"objective": objective, "type": word})).messages_of(
                "spec.method.type"
            )
            assert any(f"{word} is an objective: set method.objective: {word}" in each for each in messages)
    for type_ in TYPES:
        for name in TYPES:
            messages = try_create(api, job(method={"objective": name, "type": type_})).messages_of(
                "spec.method.objective"
            )
            assert any(f"{name} is a type: set method.type: {name}" in each for each in messages)


@pytest.mark.parametrize("mode", ["ByGates", "Manual", "Always", "Never"])
@pytest.mark.parametrize("evaluation", [None, {}, {"gates": []}, {"gates": GATES}], ids=str)
def test_only_always_contradicts_gates(api: Api, mode: str, evaluation: Object | None) -> None:
    verdict = try_create(api, job(promotion={"mode": mode}, evaluation=evaluation))

    assert verdict.accepted == (mode != "Always" or not (evaluation or {}).get("gates"))
    if not verdict.accepted:
        (message,) = verdict.messages_of("spec.promotion.mode")
        assert "promotion.mode: Always contradicts evaluation.gates" in message


def test_settings_of_an_adapter_that_are_absent_stay_absent(api: Api) -> None:
    created = try_create(api, job(method={"lora": {"alpha": 64}}))
    assert created.obj["spec"]["method"] == {"objective": "SFT", "type": "LoRA", "lora": {"alpha": 64}}


def test_a_base_model_as_model_is_refused_by_kubectl_and_explained_to_other_clients(api: Api) -> None:
    habit = job(modelLine=None, model="Qwen/Qwen3-0.6B")

    strict = try_create(api, habit)
    assert 'unknown field "spec.model"' in strict.message

    (message,) = try_create(api, habit, "Warn").messages_of("spec.modelLine")
    assert message.endswith(
        "modelLine names the line that the result belongs to; the model to train goes into baseModel.uri"
    )
