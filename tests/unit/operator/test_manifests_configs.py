# SPDX-License-Identifier: Apache-2.0
"""Which parts of a run's spec reach the trainer, and by which names."""

from dataclasses import replace
from typing import Any

import pytest

from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.api.finetune_job_status import Resolved
from finetune_operator.api.training import Preference, ResolvedHyperparameters
from finetune_operator.manifests.configs import (
    MeasuredData,
    checkpoint_type,
    evaluate_config,
    preflight_config,
    train_config,
)
from finetune_operator.manifests.trainer_config import StageInputs
from finetune_operator.manifests.weights import EvaluatedWeights
from finetune_trainer.contract.configs import EvaluateConfig, PreflightConfig, TrainConfig
from finetune_trainer.contract.evaluation import GateBound, LiveModel
from finetune_trainer.contract.hyperparameters import Hyperparameters
from finetune_trainer.contract.method import METHODS, TYPES
from finetune_trainer.contract.method import Preference as ContractPreference
from tests.unit.operator.runobjects import HYPERPARAMETERS, ROWS, digest, finetunejob


def job_and_inputs(**spec: Any) -> tuple[FineTuneJob, StageInputs]:
    manifest = finetunejob(**spec)
    manifest["metadata"]["namespace"] = "team"
    job = FineTuneJob.model_validate(manifest)
    return job, StageInputs(job, job.uid, "pvc://artifacts/team", None)


def preflight(**spec: Any) -> PreflightConfig:
    job, inputs = job_and_inputs(**spec)
    return preflight_config(inputs, job.spec, Resolved(dataset_digest=ROWS), {})


def train(
    chosen: Hyperparameters = HYPERPARAMETERS, preference: Preference | None = None, **spec: Any
) -> TrainConfig:
    job, inputs = job_and_inputs(**spec)
    resolved = Resolved(base_model_digest=digest("b"), dataset_digest=ROWS, preference=preference)
    return train_config(inputs, job.spec, resolved, ResolvedHyperparameters(**chosen.model_dump()))


def test_variants_of_lora_reach_the_trainer() -> None:
    method = preflight(method={"type": "LoRA", "lora": {"rsLoRA": True, "dora": True}}).method

    assert method.lora.rslora
    assert method.lora.dora


@pytest.mark.parametrize(("objective", "type_"), METHODS)
def test_the_method_reaches_the_trainer(objective: str, type_: str) -> None:
    method = {"objective": objective, "type": type_}

    for config in (preflight(method=method), train(method=method)):
        assert (config.method.objective, config.method.type) == (objective, type_)


def test_settings_of_an_adapter_reach_preflight_as_they_were_given_and_training_as_they_were_resolved() -> (
    None
):
    assert preflight(method={"lora": {"r": 16}}).to_dict()["method"] == {"lora": {"r": 16}}
    assert "method" not in preflight(method={"lora": {}}).to_dict()


def test_the_requested_sharding_reaches_preflight_and_the_resolved_one_training() -> None:
    assert preflight(compute={"sharding": "Replicated"}).sharding == "Replicated"
    assert preflight().sharding == "Auto"

    replicated = HYPERPARAMETERS.model_copy(update={"sharded": False})
    assert train(chosen=replicated).hyperparameters.sharded is False


def test_what_preflight_made_of_the_preference_reaches_training() -> None:
    spec: dict[str, Any] = {
        "method": {"objective": "KTO", "preference": {"beta": 0.2, "undesirableWeight": 1.5}}
    }
    chosen = Preference(beta=0.2, desirable_weight=3, undesirable_weight=1.5)

    asked, trained = preflight(**spec).method.preference, train(preference=chosen, **spec).method.preference

    assert asked == ContractPreference(beta=0.2, undesirable_weight=1.5)
    assert trained == ContractPreference(beta=0.2, desirable_weight=3, undesirable_weight=1.5)


def evaluate(live: LiveModel | None = None, **spec: Any) -> EvaluateConfig:
    job, inputs = job_and_inputs(**{"evaluation": {}} | spec)
    assert job.spec.evaluation is not None
    method = job.spec.method
    weights = EvaluatedWeights(
        digest=digest("c"),
        type=checkpoint_type(method),
        base_model=digest("b"),
        quantized_base=TYPES[method.type].quantized_base,
        chat_template_kwargs={"enable_thinking": False},
        hyperparameters=ResolvedHyperparameters(**HYPERPARAMETERS.model_dump()),
    )
    return evaluate_config(
        inputs,
        job.spec.evaluation,
        weights,
        MeasuredData(dataset=ROWS),
        features={},
        step_timeout_seconds=job.spec.compute.step_timeout_seconds,
        live=live,
    )


def test_the_preference_is_measured_where_a_gate_needs_it() -> None:
    gate = {"metric": "preference_accuracy", "min": 0.9, "minGain": 0.2, "over": "Base"}

    config = evaluate(method={"objective": "DPO"}, evaluation={"metrics": ["loss"], "gates": [gate]})

    assert config.metrics == ("loss", "preference_accuracy")
    assert config.chat_template_kwargs == {"enable_thinking": False}
    assert config.checkpoint_type == "Adapter"


def test_the_column_of_the_slices_is_checked_before_training_and_used_after_it() -> None:
    spec = {"sliceBy": "language"}

    assert preflight(evaluation=spec).slice_by == evaluate(evaluation=spec).slice_by == "language"
    assert preflight(evaluation={}).slice_by is None
    assert preflight(evaluation=spec).digest == preflight(evaluation={}).digest


def test_the_gates_and_all_that_they_compare_with_reach_the_trainer() -> None:
    gates = [
        {"metric": "f1_token", "minGain": 0, "over": "Live", "confidence": 0.9},
        {"metric": "loss", "max": 2},
    ]

    live = LiveModel(name="rival", digest=digest("1"), type="Adapter", base_model=digest("b"))
    spec = {"metrics": ["exact_match"], "compare": ["Prompted"], "gates": gates}

    config = evaluate(live=live, evaluation=spec)

    assert (config.subjects, config.live) == (("Tuned", "Prompted", "Live"), live)
    assert evaluate(evaluation=spec).subjects == ("Tuned", "Prompted")
    assert config.metrics == ("exact_match", "loss", "f1_token")
    assert config.gates == (
        GateBound(metric="f1_token", min_gain=0, over="Live", confidence=0.9),
        GateBound(metric="loss", max=2),
    )


def test_how_to_evaluate_reaches_the_trainer() -> None:
    config = evaluate(
        evaluation={
            "generation": {"maxTokens": 64, "temperature": 0.5},
            "options": {"pattern": "[a-z]+"},
            "prompted": {"systemPrompt": "Name the team.", "examples": 2},
            "sliceBy": "language",
            "checks": {"memorization": "Warn"},
        }
    )

    assert (config.generation.max_tokens, config.generation.temperature) == (64, 0.5)
    assert config.options.pattern == "[a-z]+"
    assert (config.prompted.system_prompt, config.prompted.examples) == ("Name the team.", 2)
    assert config.prompted.seed == HYPERPARAMETERS.seed
    assert config.slice_by == "language"
    assert config.checks is not None
    assert (config.checks.no_change, config.checks.memorization) == ("Veto", "Warn")


@pytest.mark.parametrize("method", TYPES)
def test_only_what_was_trained_in_four_bits_is_evaluated_in_four_bits(method: str) -> None:
    assert evaluate(method={"type": method}).quantized_base == (method == "QLoRA")


def test_steps_and_patience_of_the_validation_reach_the_trainer() -> None:
    wanted = preflight(validation={"everySteps": 5, "earlyStoppingPatience": 2}).hyperparameters
    assert (wanted.validate_every_steps, wanted.early_stopping_patience) == (5, 2)


def test_what_happens_to_long_rows_reaches_the_trainer() -> None:
    config = preflight(dataset={"ref": {"name": "tickets"}, "onLongRows": "Truncate"})

    assert config.hyperparameters.on_long_rows == "Truncate"


def test_defaults_are_left_out_of_the_config_so_that_an_older_trainer_can_read_it() -> None:
    spec = {"method": {"objective": "SFT", "type": "LoRA"}}

    assert "method" not in preflight(**spec).to_dict()
    assert "hyperparameters" not in preflight(**spec).to_dict()


def test_the_limit_of_a_step_reaches_the_trainer() -> None:
    assert "stepTimeoutSeconds" not in train().to_dict()
    assert train(compute={"stepTimeoutSeconds": 60}).step_timeout_seconds == 60


def test_gradient_checkpointing_reaches_the_trainer() -> None:
    wanted = preflight(hyperparameters={"gradientCheckpointing": True}).hyperparameters

    assert wanted.gradient_checkpointing
    assert train(chosen=HYPERPARAMETERS.model_copy(update={"gradient_checkpointing": True})).to_dict()[
        "hyperparameters"
    ]["gradientCheckpointing"]
    assert "gradientCheckpointing" not in train().to_dict()["hyperparameters"]


def test_arguments_for_the_chat_template_reach_preflight_and_training() -> None:
    job, inputs = job_and_inputs()
    arguments: dict[str, Any] = {"enable_thinking": False, "effort": "low", "budget": 0.5}
    resolved = Resolved(base_model_digest=digest("b"), dataset_digest=ROWS, chat_template_kwargs=arguments)

    configs = (
        preflight_config(inputs, job.spec, resolved, {}),
        train_config(inputs, job.spec, resolved, ResolvedHyperparameters(**HYPERPARAMETERS.model_dump())),
    )

    for config in configs:
        assert config.to_dict()["chatTemplateKwargs"] == arguments
    assert "chatTemplateKwargs" not in train().to_dict()


def test_shares_of_a_learning_curve_reach_the_trainer_sorted_and_without_the_run_itself() -> None:
    curve = {"shares": [1, 0.5, 0.25]}

    assert preflight(learningCurve=curve).learning_curve == (0.25, 0.5)
    assert train(learningCurve=curve).learning_curve == (0.25, 0.5)
    assert train().learning_curve == ()


def test_only_a_learning_curve_depends_on_the_time_of_the_run() -> None:
    """A limit that is raised changes neither other configs nor the digest of any."""
    job, inputs = job_and_inputs(learningCurve={"shares": [0.5]})
    plain, _ = job_and_inputs()
    resolved = Resolved(base_model_digest=digest("b"), dataset_digest=ROWS)
    chosen = ResolvedHyperparameters(**HYPERPARAMETERS.model_dump())
    short, long = (replace(inputs, max_run_seconds=seconds) for seconds in (600, 6000))

    curves = [train_config(each, job.spec, resolved, chosen) for each in (short, long)]
    assert [config.max_run_seconds for config in curves] == [600, 6000]
    assert curves[0].digest == curves[1].digest
    assert preflight_config(short, job.spec, resolved, {}).max_run_seconds == 600
    assert train_config(short, plain.spec, resolved, chosen).max_run_seconds is None
    assert preflight_config(short, plain.spec, resolved, {}).max_run_seconds is None
