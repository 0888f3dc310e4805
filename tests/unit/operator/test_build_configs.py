"""What of a run's spec reaches the trainer, and in which words."""

from typing import Any

from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.api.finetunejobstatus import Resolved, ResolvedHyperparameters
from finetune_operator.build.configs import StageInputs, preflight_config, train_config
from finetune_trainer.contract import Hyperparameters, PreflightConfig, TrainConfig
from tests.unit.operator.runobjects import HYPERPARAMETERS, ROWS, digest, finetunejob


def job_and_inputs(**spec: Any) -> tuple[FineTuneJob, StageInputs]:
    manifest = finetunejob(**spec)
    manifest["metadata"]["namespace"] = "team"
    job = FineTuneJob.model_validate(manifest)
    return job, StageInputs(job, job.uid, "pvc://artifacts/team", None)


def preflight(**spec: Any) -> PreflightConfig:
    job, inputs = job_and_inputs(**spec)
    return preflight_config(inputs, job.spec, Resolved(dataset_digest=ROWS))


def train(chosen: Hyperparameters = HYPERPARAMETERS, **spec: Any) -> TrainConfig:
    job, inputs = job_and_inputs(**spec)
    resolved = Resolved(base_model_digest=digest("b"), dataset_digest=ROWS)
    return train_config(inputs, job.spec, resolved, ResolvedHyperparameters(**chosen.model_dump()))


def test_variants_of_lora_reach_the_trainer() -> None:
    method = preflight(method={"type": "LoRA", "lora": {"rsLoRA": True, "dora": True}}).method

    assert method.lora.rslora
    assert method.lora.dora


def test_the_patience_reaches_the_trainer() -> None:
    assert (
        preflight(hyperparameters={"earlyStoppingPatience": 2}).hyperparameters.early_stopping_patience == 2
    )


def test_defaults_are_left_out_of_the_config_so_that_an_older_trainer_can_read_it() -> None:
    spec = {"method": {"type": "LoRA", "lora": {"r": 16, "rsLoRA": False, "dora": False}}}

    assert "method" not in preflight(**spec).to_dict()
    assert "hyperparameters" not in preflight(**spec).to_dict()


def test_only_a_batch_size_that_was_left_out_may_be_adapted() -> None:
    assert "adaptBatchSize" not in train().to_dict()
    assert not train(hyperparameters={"perDeviceBatchSize": 4}).adapt_batch_size


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
