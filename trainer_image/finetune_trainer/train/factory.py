# SPDX-License-Identifier: Apache-2.0
"""Creates the trainer of a method; `LOSSES` has the losses of the objectives for preference data."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from finetune_trainer.contract.hyperparameters import Hyperparameters
from finetune_trainer.contract.method import OBJECTIVES, Method, Objective
from finetune_trainer.distributed.process_group import Group
from finetune_trainer.tokens.batching import Padding
from finetune_trainer.train.batches import Division, RowLimit, largest_batch
from finetune_trainer.train.collation import choose_budget, choose_collation
from finetune_trainer.train.model_setup import Trainable
from finetune_trainer.train.parallel.shards import is_fully_sharded
from finetune_trainer.train.preference.dpo import DPO
from finetune_trainer.train.preference.kto import KTO
from finetune_trainer.train.preference.orpo import ORPO
from finetune_trainer.train.preference.preference_loss import PreferenceLoss
from finetune_trainer.train.preference.preference_trainer import PreferenceTrainer
from finetune_trainer.train.preference.reference import ComputedLikelihoods, ReferenceLikelihoods
from finetune_trainer.train.trainer import CompletionTrainer, FullyShardedTrainer

LOSSES: Final[Mapping[Objective, type[PreferenceLoss[Any]]]] = {
    each.objective: each for each in (DPO, KTO, ORPO)
}


def make_trainer(
    model: Trainable,
    rows: Sequence[Any],
    *,
    tokenizer: PreTrainedTokenizerBase,
    method: Method,
    hyperparameters: Hyperparameters,
    folder: Path,
    device: torch.device,
    continues: bool,
    group: Group,
    references: ReferenceLikelihoods | None = None,
) -> CompletionTrainer | PreferenceTrainer:
    """Create the trainer of `method` for encoded rows.

    Args:
        model: the model to train.
        rows: training rows, encoded for the method.
        tokenizer: the tokenizer of the base model.
        method: the method and its settings.
        hyperparameters: those of the attempt.
        folder: where the trainer may write.
        device: the device of this process.
        continues: whether another run trained the weights before.
        group: the processes of the run.
        references: keeps what the reference model says about the rows; None keeps nothing.
    """
    by_rows = RowLimit(hyperparameters.max_batch_rows)
    if not OBJECTIVES[method.objective].rows.is_preference_data:
        # An adapter is replicated, also if its base model is sharded.
        trainer_class = FullyShardedTrainer if is_fully_sharded(model) else CompletionTrainer
        pad, max_tokens = tokenizer.pad_token_id, hyperparameters.max_batch_tokens
        division: Division
        if max_tokens is None:
            division = by_rows
            largest = largest_batch(hyperparameters.batch_size, group.size, by_rows.max_rows)
            collate = choose_collation(model, rows, largest, pad)
        else:
            division = budget = choose_budget(model, max_tokens, pad, device)
            collate = budget.collate
        return trainer_class(
            model, rows, collate, hyperparameters, folder, division=division, device=device, group=group
        )
    if not isinstance(model, PeftModel):
        raise TypeError(f"{method.label} trains an adapter, not a {type(model).__name__}")
    loss = LOSSES[method.objective](
        method.preference, Padding(tokenizer.pad_token_id), hyperparameters.max_sequence_length
    )
    return PreferenceTrainer(
        model,
        rows,
        loss,
        hyperparameters,
        folder,
        division=by_rows,
        device=device,
        group=group,
        continues=continues,
        references=references or ComputedLikelihoods(),
    )
