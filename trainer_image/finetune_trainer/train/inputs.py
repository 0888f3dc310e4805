# SPDX-License-Identifier: Apache-2.0
"""The inputs of a run: base model, tokenizer and encoded rows, without those that its evaluation repeats.

Rows that the evaluated rows repeat are found once per pair of datasets. The result is a file that is derived
from the training rows, so that preflight and each process of train leave out the same rows.
"""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from transformers import PreTrainedTokenizerBase

from finetune_trainer import canonical_json
from finetune_trainer.contract.configs import PreflightConfig, TrainConfig
from finetune_trainer.contract.hyperparameters import Hyperparameters
from finetune_trainer.contract.references import ArtifactRef
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason, SplitName
from finetune_trainer.data.duplicates import NO_LEAKS, Leaks, find_leaks
from finetune_trainer.rows import LEARNED_FROM, SPLIT_FILES, read_rows, split_paths
from finetune_trainer.runtime.termination import Preempted, StageFailure
from finetune_trainer.stage.context import StageContext
from finetune_trainer.store import DerivedRef, Store
from finetune_trainer.tokens.batching import row_lengths
from finetune_trainer.tokens.chat_template import load_tokenizer
from finetune_trainer.tokens.encoding import make_encoder
from finetune_trainer.tokens.rendering import RowNotEncodable
from finetune_trainer.tokens.token_files import TokenFiles
from finetune_trainer.train.batches import run_steps, steps_per_epoch

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingData:
    """Everything that a run reads before it trains."""

    base: Path
    """Folder of the base model."""
    tokenizer: PreTrainedTokenizerBase
    rows: Sequence[Any]
    """Training rows, encoded for the method."""
    validation: Sequence[Any]
    """Validation rows, encoded for the method."""
    validation_numbers: Sequence[int]
    """Number of each validation row in its split, from 1. Long and leaked rows may be left out."""
    max_row_tokens: int
    """Number of tokens of the longest training row."""
    steps_per_epoch: int

    @classmethod
    def load(
        cls, config: TrainConfig, hyperparameters: Hyperparameters, context: StageContext
    ) -> "TrainingData":
        """Read the inputs. Rows that preflight tokenized are read from disk when they are used.

        Raises StageFailure (ARTIFACT_NOT_FOUND, ARTIFACT_CORRUPT, BASE_MODEL_INVALID, INVALID_CONFIG,
        INVALID_DATA, STORE_UNAVAILABLE), Preempted.
        """
        base = context.store.artifact(ArtifactRef(kind="models", digest=config.base_model))
        tokenizer = load_tokenizer(base)
        read = _read_tokens(config, context) or _encode_rows(tokenizer, config, context)
        rows, _ = read("train")
        validation, validation_numbers = read("validation")
        return cls(
            base=base,
            tokenizer=tokenizer,
            rows=rows,
            validation=validation,
            validation_numbers=validation_numbers,
            max_row_tokens=max(map(int, row_lengths(rows)), default=0),
            steps_per_epoch=_check_steps(len(rows), hyperparameters),
        )


ReadSplit = Callable[[SplitName], tuple[Sequence[Any], Sequence[int]]]
"""Returns the rows of a split, of which longer ones are truncated or left out, and their numbers from 1."""


def _read_tokens(config: TrainConfig, context: StageContext) -> ReadSplit | None:
    """Read the rows that preflight tokenized; None if an older preflight did not, or if they were deleted."""
    result = context.store.read_result(config.run, "preflight")
    digest = result.preflight.tokens if result is not None and result.preflight is not None else None
    if digest is None:
        return None
    ref = DerivedRef(ArtifactRef(kind="datasets", digest=config.dataset), digest)
    if not context.store.has(ref):
        logger.warning("%s was deleted: the rows are tokenized again", context.store.uri(ref))
        return None
    # Of the processes of a pod, one reads the files whole to verify them.
    files = TokenFiles(context.store.artifact(ref, verify=not context.group.local_rank))
    hyperparameters, leaks = config.hyperparameters, leaks_of(config, context.store)

    def read(split: SplitName) -> tuple[Sequence[Any], Sequence[int]]:
        rows = files.rows(
            split,
            max_length=hyperparameters.max_sequence_length,
            drops_longer=hyperparameters.on_long_rows == "Drop",
            without=leaks.rows.get(split, ()),
        )
        return rows, rows.numbers

    return read


def _encode_rows(tokenizer: PreTrainedTokenizerBase, config: TrainConfig, context: StageContext) -> ReadSplit:
    """Encode the rows of the dataset, and hold all of them in memory."""
    data = context.store.artifact(ArtifactRef(kind="datasets", digest=config.dataset), verify=True)
    encoder = make_encoder(config.method.objective, tokenizer, config.chat_template_kwargs)
    max_length = config.hyperparameters.max_sequence_length
    drops_longer = config.hyperparameters.on_long_rows == "Drop"
    leaks = leaks_of(config, context.store)

    def read(split: SplitName) -> tuple[list[Any], list[int]]:
        encoded: list[Any] = []
        numbers: list[int] = []
        left_out = frozenset(leaks.rows.get(split, ()))
        for number, row in enumerate(read_rows(data / SPLIT_FILES[split]), 1):
            if context.stop.is_set():
                raise Preempted
            try:
                tokens = encoder.encode(row)
            except RowNotEncodable as error:
                raise StageFailure(
                    FailureReason.INVALID_DATA, f"{split} row {number}: {error}", ExitCode.BAD_DATA
                ) from error
            if number not in left_out and (not drops_longer or tokens.num_tokens <= max_length):
                encoded.append(tokens.truncate(max_length))
                numbers.append(number)
        return encoded, numbers

    return read


def _check_steps(rows: int, hyperparameters: Hyperparameters) -> int:
    """Steps per epoch. Raises StageFailure (INVALID_CONFIG) if they do not match the config."""
    batch_size, epochs = hyperparameters.batch_size, hyperparameters.epochs
    steps = run_steps(rows, batch_size, epochs, hyperparameters.max_steps)
    if steps == 0 or steps != hyperparameters.total_steps:
        raise StageFailure(
            FailureReason.INVALID_CONFIG,
            f"hyperparameters.totalSteps: {hyperparameters.total_steps}, but {rows} training rows make"
            f" {steps} steps; these hyperparameters belong to another dataset",
        )
    return steps_per_epoch(rows, batch_size)


LEAKS_FILE: Final = "leaks.json"
LEAKS_RULE: Final = 1
"""Raise it with every change of what counts as a leak."""


def leaks_of(config: PreflightConfig | TrainConfig, store: Store) -> Leaks:
    """The rows of the dataset to leave out; none if the run is evaluated on rows of the same dataset.

    Prepare has removed leaks within a dataset.
    Raises StageFailure (ARTIFACT_NOT_FOUND, ARTIFACT_CORRUPT, STORE_UNAVAILABLE), Preempted.
    """
    if config.test_dataset is None or config.test_dataset == config.dataset:
        return NO_LEAKS
    dataset = ArtifactRef(kind="datasets", digest=config.dataset)
    name = f"leaks-{LEAKS_RULE}-{config.test_split}-{config.test_dataset.removeprefix('sha256:')}"
    known = store.derived(dataset, name)
    if known is None:
        known = _find(config.test_dataset, config.test_split, dataset, store)
        store.name_derived(known, name)
    content = json.loads((store.artifact(known) / LEAKS_FILE).read_bytes())
    return Leaks(
        rows={split: tuple(content["rows"][split]) for split in LEARNED_FROM},
        near=content["near"],
        unsearched=content["unsearched"],
    )


def _find(test_dataset: str, split: SplitName, dataset: ArtifactRef, store: Store) -> DerivedRef:
    data = store.artifact(dataset, verify=True)
    held_out = store.artifact(ArtifactRef(kind="datasets", digest=test_dataset), verify=True)
    found = find_leaks(split_paths(data), split_paths(held_out)[split])
    with store.staging() as staging:
        (staging / LEAKS_FILE).write_bytes(
            canonical_json.encode(
                {"rows": dict(found.rows), "near": found.near, "unsearched": found.unsearched}
            )
        )
        return DerivedRef(dataset, store.publish(dataset, staging))
