# SPDX-License-Identifier: Apache-2.0
"""Objects and stage results of a small run, for the tests of the reconcilers."""

from typing import Any

from finetune_operator.plan import Manifest
from finetune_trainer.contract.hyperparameters import Hyperparameters
from finetune_trainer.contract.method import LoRA
from finetune_trainer.contract.results import (
    CheckpointResult,
    DataStatistics,
    EvaluateResult,
    PreflightResult,
    PrepareResult,
    Score,
    SourceResult,
    SplitRecord,
    StageResult,
    TrainResult,
)
from finetune_trainer.contract.vocabulary import Stage

STORE = "pvc://artifacts"
JOB, JOB_UID = "tickets-v1", "0b5e7a10-0000-4000-8000-000000000001"
DATASET, DATASET_UID = "tickets", "d0000000-0000-4000-8000-000000000001"


def digest(character: str) -> str:
    return "sha256:" + character * 64


BASE, ROWS, WEIGHTS = digest("b"), digest("d"), digest("c")
VERSION = f"{DATASET}-{'d' * 12}"
CHECKPOINT = f"{JOB}-0b5e7-40-{'c' * 8}"


def profile(name: str = "cpu", *, default: bool = True, **spec: Any) -> Manifest:
    annotations = {"finetune.dev/is-default-profile": "true"} if default else {}
    fields: Manifest = {
        "accelerator": {"resource": "cpu", "maxPerPod": 4},
        "store": {"uri": STORE, "accessMode": "ReadWriteOnce"},
    }
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "ComputeProfile",
        "metadata": {"name": name, "annotations": annotations},
        "spec": {**fields, **spec},
    }


def sized(**resources: Manifest) -> list[Manifest]:
    """Entries of a profile's `pods` with the size of each stage."""
    return [{"stages": [stage], "resources": given} for stage, given in resources.items()]


def claim(name: str, *modes: str) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {"accessModes": list(modes or ("ReadWriteOnce",))},
    }


def dataset(**spec: Any) -> Manifest:
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "Dataset",
        "metadata": {"name": DATASET, "uid": DATASET_UID},
        "spec": {"sources": [{"uri": "configmap://tickets/rows.jsonl"}], **spec},
    }


def finetunejob(**spec: Any) -> Manifest:
    """A run on the Dataset with two gates, without the fields that are None."""
    fields: Manifest = {
        "modelLine": "ticket-routing",
        "baseModel": {"uri": "pvc://models/gemma"},
        "dataset": {"ref": {"name": DATASET}},
        "evaluation": {
            "gates": [
                {"metric": "exact_match", "min": 0.8},
                {"metric": "exact_match", "minGain": 0.3, "over": "Base"},
            ]
        },
        **spec,
    }
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": JOB, "uid": JOB_UID},
        "spec": {key: value for key, value in fields.items() if value is not None},
    }


def prerequisites() -> tuple[Manifest, ...]:
    """The prerequisites of a run, without its data."""
    return profile(), claim("artifacts"), claim("models")


def prepared(
    run: str = f"{DATASET_UID}-1", test_rows: int = 24, source_version: str | None = None, **result: Any
) -> StageResult:
    fields: dict[str, Any] = {
        "dataset": ROWS,
        "sources": (SourceResult(version=source_version),),
        "source": digest("1"),
        "preparation": digest("2"),
        "format": "PromptCompletion",
        "splits": (
            SplitRecord(name="train", rows=192, digest=digest("3")),
            SplitRecord(name="validation", rows=24, digest=digest("4")),
            SplitRecord(name="test", rows=test_rows, digest=digest("5")),
        ),
        "statistics": DataStatistics(source_rows=240),
    }
    return StageResult(
        stage="prepare", run=run, outcome="Succeeded", prepare=PrepareResult(**{**fields, **result})
    )


HYPERPARAMETERS = Hyperparameters(
    epochs=3,
    learning_rate=0.0002,
    batch_size=8,
    max_batch_rows=4,
    max_sequence_length=128,
    seed=42,
    total_steps=40,
    warmup_ratio=0.05,
    scheduler="Linear",
    weight_decay=0,
    save_every_steps=10,
)


def preflighted(run: str = JOB_UID) -> StageResult:
    return StageResult(
        stage="preflight",
        run=run,
        outcome="Succeeded",
        preflight=PreflightResult(
            base_model=BASE,
            hyperparameters=HYPERPARAMETERS,
            lora=LoRA(),
            chat_template="gemma3",
            train_rows=192,
            train_tokens=9000,
            longest_row_tokens=80,
        ),
    )


def trained(run: str = JOB_UID) -> StageResult:
    return StageResult(
        stage="train",
        run=run,
        outcome="Succeeded",
        train=TrainResult(
            steps=40,
            train_loss=0.12,
            tokens=27000,
            checkpoints=(
                CheckpointResult(
                    digest=WEIGHTS,
                    type="Adapter",
                    step=40,
                    epoch=3,
                    train_loss=0.12,
                    validation_loss=0.2,
                    best=True,
                    final=True,
                ),
            ),
        ),
    )


def evaluated(tuned: float = 0.95, base: float = 0.0, run: str = JOB_UID, **result: Any) -> StageResult:
    return StageResult(
        stage="evaluate",
        run=run,
        outcome="Succeeded",
        evaluate=EvaluateResult(
            checkpoint=WEIGHTS,
            split="test",
            scores=(
                Score(metric="exact_match", subject="Tuned", value=tuned, rows=24),
                Score(metric="exact_match", subject="Base", value=base, rows=24),
                Score(metric="loss", subject="Tuned", value=0.2, rows=24),
                Score(metric="loss", subject="Base", value=3.1, rows=24),
            ),
            **result,
        ),
    )


def failed(stage: Stage, reason: str, message: str, run: str = JOB_UID, **parts: Any) -> StageResult:
    return StageResult(stage=stage, run=run, outcome="Failed", reason=reason, message=message, **parts)
