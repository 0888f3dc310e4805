"""What of a run's spec reaches the trainer, and in which words."""

from typing import Any

from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.api.finetunejobstatus import Resolved
from finetune_operator.build.configs import StageInputs, preflight_config
from finetune_trainer.contract import PreflightConfig
from tests.unit.operator.runobjects import ROWS, finetunejob


def preflight(**spec: Any) -> PreflightConfig:
    manifest = finetunejob(**spec)
    manifest["metadata"]["namespace"] = "team"
    job = FineTuneJob.model_validate(manifest)
    return preflight_config(
        StageInputs(job, job.uid, "pvc://artifacts/team", None), job.spec, Resolved(dataset_digest=ROWS)
    )


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
