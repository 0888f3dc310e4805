"""The inputs of a run: base model, tokenizer and encoded rows."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from finetune_trainer.contract.configs.train import TrainConfig
from finetune_trainer.contract.hyperparameters import Hyperparameters
from finetune_trainer.contract.outcomes import ExitCode, FailureReason
from finetune_trainer.contract.references import ArtifactRef
from finetune_trainer.contract.vocabulary import SplitName
from finetune_trainer.rows import SPLIT_FILES, load_rows
from finetune_trainer.runtime.failure import Preempted, StageFailure
from finetune_trainer.stage.context import StageContext
from finetune_trainer.tokens.answers import Encoder, make_encoder
from finetune_trainer.tokens.chattemplate import load_tokenizer
from finetune_trainer.tokens.rendering import RowNotEncodable
from finetune_trainer.train.schedule import steps_per_epoch


@dataclass(frozen=True)
class TrainingData:
    """Everything that a run reads before it trains."""

    base: Path
    """Folder of the base model."""
    tokenizer: PreTrainedTokenizerBase
    rows: list[Any]
    """Training rows, encoded for the method."""
    validation: list[Any]
    """Validation rows, encoded for the method."""
    max_row_tokens: int
    """Number of tokens of the longest training row."""
    steps_per_epoch: int

    @classmethod
    def load(
        cls, config: TrainConfig, hyperparameters: Hyperparameters, context: StageContext
    ) -> "TrainingData":
        """Read and encode the inputs.

        Raises StageFailure (ARTIFACT_NOT_FOUND, ARTIFACT_CORRUPT, BASE_MODEL_INVALID, INVALID_CONFIG,
        INVALID_DATA, STORE_UNAVAILABLE), Preempted.
        """
        base = context.store.artifact(ArtifactRef(kind="models", digest=config.base_model))
        folder = context.store.artifact(ArtifactRef(kind="datasets", digest=config.dataset), verify=True)
        tokenizer = load_tokenizer(base)
        encoder = make_encoder(config.method.type, tokenizer, config.chat_template_kwargs)
        rows = _encode(folder, "train", encoder, config, context)
        return cls(
            base=base,
            tokenizer=tokenizer,
            rows=rows,
            validation=_encode(folder, "validation", encoder, config, context),
            max_row_tokens=max((row.num_tokens for row in rows), default=0),
            steps_per_epoch=_checked_steps(len(rows), hyperparameters),
        )


def _encode(
    data: Path, split: SplitName, encoder: Encoder, config: TrainConfig, context: StageContext
) -> list[Any]:
    encoded: list[Any] = []
    for number, row in enumerate(load_rows(data / SPLIT_FILES[split]), 1):
        if context.stop.is_set():
            raise Preempted
        try:
            encoded.append(encoder.encode(row).truncate(config.hyperparameters.max_sequence_length))
        except RowNotEncodable as error:
            raise StageFailure(
                FailureReason.INVALID_DATA, f"{split} row {number}: {error}", ExitCode.BAD_DATA
            ) from error
    return encoded


def _checked_steps(rows: int, hyperparameters: Hyperparameters) -> int:
    """Steps per epoch. Raises StageFailure (INVALID_CONFIG) if they do not match the config."""
    steps = steps_per_epoch(
        rows,
        hyperparameters.per_device_batch_size,
        hyperparameters.gradient_accumulation_steps,
        hyperparameters.processes,
    )
    if steps == 0 or steps * hyperparameters.epochs != hyperparameters.total_steps:
        raise StageFailure(
            FailureReason.INVALID_CONFIG,
            f"hyperparameters.totalSteps: {hyperparameters.total_steps}, but {rows} training rows make"
            f" {steps * hyperparameters.epochs} steps; these hyperparameters belong to another dataset",
        )
    return steps
