# SPDX-License-Identifier: Apache-2.0
"""transformers' Trainer with our loss, and with its state written by our code."""

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PrinterCallback, TrainingArguments, set_seed
from typing_extensions import override

from finetune_trainer.contract.hyperparameters import Hyperparameters
from finetune_trainer.distributed.group import ALONE, Group
from finetune_trainer.model.completionloss import (
    completion_loss,
    completion_losses_by_row,
    total_completion_loss,
)
from finetune_trainer.tokens.batching import (
    Collate,
    TokenBudget,
    collate_with_row_labels,
    longest_first,
    row_lengths,
    token_count,
)
from finetune_trainer.tokens.encode import EncodedRow
from finetune_trainer.train.collation import probe_head
from finetune_trainer.train.gradientnorm import NormKeeper
from finetune_trainer.train.heldout import LazyBatches, RowBatches
from finetune_trainer.train.modelsetup import Trainable
from finetune_trainer.train.parallel.sharding import (
    BudgetedSteps,
    CollatedBatches,
    RowsWithBlank,
    ShardedBatches,
)
from finetune_trainer.train.parallel.shards import load_optimizer, load_weights
from finetune_trainer.train.preference.rewards import RewardSums
from finetune_trainer.train.protocol import Validation
from finetune_trainer.train.rowlosses import RowLossCollector
from finetune_trainer.train.states.layout import is_sharded
from finetune_trainer.train.states.pendingsave import StateSnapshot
from finetune_trainer.train.states.snapshot import collect_whole
from finetune_trainer.train.throughput import StepFigures

WARMUP_RATIO: Final = 0.05
"""Share of all steps in which the learning rate rises; after that it falls linearly to 0."""
MAX_GRADIENT_NORM: Final = 1.0


ArgumentsT = TypeVar("ArgumentsT", bound=TrainingArguments)


def training_arguments(
    arguments_class: type[ArgumentsT],
    hyperparameters: Hyperparameters,
    device: torch.device,
    folder: Path,
    **more: Any,
) -> ArgumentsT:
    """The arguments of every method's trainer; `more` has those of one method."""
    on_gpu = device.type == "cuda"
    arguments = arguments_class(
        output_dir=str(folder),
        num_train_epochs=hyperparameters.epochs,
        learning_rate=hyperparameters.learning_rate,
        per_device_train_batch_size=hyperparameters.per_device_batch_size,
        gradient_accumulation_steps=hyperparameters.gradient_accumulation_steps,
        seed=hyperparameters.seed,
        data_seed=hyperparameters.seed,
        lr_scheduler_type="linear",
        warmup_steps=WARMUP_RATIO,
        weight_decay=0,
        max_grad_norm=MAX_GRADIENT_NORM,
        bf16=on_gpu,
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
        activation_checkpointing=hyperparameters.gradient_checkpointing,
        # Reentrant checkpointing needs inputs with gradients, and those of a frozen base model have none.
        activation_checkpointing_kwargs={"use_reentrant": False},
        remove_unused_columns=False,
        logging_strategy="no",
        eval_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        # There are no unused parameters. But the search keeps DDP from reordering its sums after the first
        # step of a process, which would round a restarted run differently.
        ddp_find_unused_parameters=not on_gpu,
        **more,
    )
    if on_gpu:
        arguments._n_gpu = 1  # otherwise a process that sees several GPUs would split its batches
    return arguments


class StepSums:
    """Sums over the batches of the current optimizer step."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(3, dtype=torch.float64, device=device)

    def add(self, loss_sum: Tensor, labels: Tensor, tokens: Tensor) -> None:
        """Count one batch; the sums stay on the device, so this does not synchronize."""
        self._sums += torch.stack(
            [value.detach().double().to(self._sums.device) for value in (loss_sum, labels, tokens)]
        )

    def take(self, rewards: RewardSums | None = None) -> StepFigures:
        """Return the figures of the step, with these rewards, and start the next step."""
        loss_sum, labels, tokens = self._sums.tolist()
        self._sums.zero_()
        return StepFigures(loss_sum, int(labels), int(tokens), rewards)


class CompletionTrainer(NormKeeper):
    """Trains on completion tokens. All tokens of an optimizer step have equal weight, across its batches.

    Without a token budget, transformers accumulates the batches of a step. With one, the loader returns the
    list of batches of a whole step, because their number differs from step to step.
    """

    loss_is_scaled_for_ga = True
    unit = "nats per token"
    reduces_each_batch = False
    """Whether processes add up their gradients after each batch of a step, instead of once per step."""

    def __init__(
        self,
        model: Trainable,
        rows: Sequence[EncodedRow],
        collate: Collate,
        hyperparameters: Hyperparameters,
        folder: Path,
        *,
        device: torch.device,
        group: Group = ALONE,
        budget: TokenBudget | None = None,
    ) -> None:
        """`collate` makes the batches, with or without a `budget`."""
        self._rows = rows
        self._step_rows = group.size * (
            hyperparameters.per_device_batch_size * hyperparameters.gradient_accumulation_steps
        )
        self._budget = budget
        if budget is not None:
            # For the Trainer, a list of batches is one batch.
            hyperparameters = hyperparameters.model_copy(update={"gradient_accumulation_steps": 1})
        super().__init__(
            model=model,
            args=training_arguments(TrainingArguments, hyperparameters, device, folder),
            data_collator=collate,
            train_dataset=rows,
        )
        if not group.is_main_process:
            set_seed(hyperparameters.seed + group.rank)  # different dropout in each process
        self.remove_callback(PrinterCallback)
        self.model_accepts_loss_kwargs = True  # makes the Trainer count the labelled tokens of a whole step
        self.sums = StepSums(device)
        self._group = group
        self._head = probe_head(model, rows)
        self._trained, self._collate = model, collate

    @override
    def training_step(
        self,
        model: torch.nn.Module,
        inputs: Any,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Compute one batch, or all batches of a step; processes exchange gradients at the end."""
        if self._budget is None:
            return super().training_step(model, inputs, num_items_in_batch)
        loss = torch.zeros((), device=self.args.device)
        for left, batch in zip(range(len(inputs) - 1, -1, -1), inputs, strict=True):
            waits = left > 0 and not self.reduces_each_batch
            with self.accelerator.no_sync(model) if waits else nullcontext():
                loss += super().training_step(model, batch, num_items_in_batch)
            if left:
                self.control = self.callback_handler.on_substep_end(self.args, self.state, self.control)
        return loss

    @override
    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor | int | None:
        if self._budget is not None:
            batch_samples = [batch for step in batch_samples for batch in step]
        return super()._get_num_items_in_batch(batch_samples, device)

    @override
    def floating_point_ops(self, inputs: Any) -> int:
        """Return 0: nothing reads the estimate, which walks over all weights for each batch."""
        return 0

    @override
    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The batch's share of the step's mean loss per token."""
        if num_items_in_batch is None:
            raise ValueError("the Trainer did not count the labelled tokens of the step")
        loss_sum, labels = completion_loss(model, inputs, self._head)
        tokens = token_count(inputs)
        if self._group.size > 1:
            tokens = tokens * (labels > 0)  # 0 for a blank row
        self.sums.add(loss_sum, labels, tokens)
        # DDP averages the gradients of the processes, but those of the step's tokens must be summed.
        return loss_sum / num_items_in_batch * self._group.size

    @override
    def get_train_dataloader(self) -> DataLoader[Any]:
        """The batches of this process; with a token budget, the lists of batches of each step."""
        seed = self.args.seed
        if self._budget is not None:
            return DataLoader(
                CollatedBatches(RowsWithBlank(self._rows), self._collate),
                batch_sampler=BudgetedSteps(
                    row_lengths(self._rows), self._step_rows, self._budget, seed, self._group
                ),
                collate_fn=list,
                pin_memory=self.args.dataloader_pin_memory,
            )
        if self._group.size == 1:
            return super().get_train_dataloader()
        size = self.args.per_device_train_batch_size
        return DataLoader(
            RowsWithBlank(self._rows),  # type: ignore[arg-type] # a sequence is a Dataset
            batch_sampler=ShardedBatches(len(self._rows), size, seed, self._group),
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def batches(self, rows: Sequence[EncodedRow]) -> LazyBatches:
        """This process's share of held-out rows for `validate`, the longest first."""
        lengths = [int(length) for length in row_lengths(rows)]
        if self._budget is not None:
            split = self._budget.split(lengths, self._group.size)
        else:
            order, size = longest_first(lengths), self.args.per_device_train_batch_size
            split = [order[at : at + size] for at in range(0, len(order), size)]
        share = self._group.share(split, [len(rows)])
        collate = partial(collate_with_row_labels, collate=self._collate)
        return LazyBatches(RowBatches(RowsWithBlank(rows), share), collate, self.args.device)

    def take_step(self) -> StepFigures:
        """Return the figures of the step, without rewards."""
        return self.sums.take()

    def validate(
        self, batches: Iterable[Mapping[str, Tensor]], by_row: RowLossCollector | None = None
    ) -> Validation:
        """Compute the mean loss over the labelled tokens of all processes."""
        if by_row is None:
            totals = total_completion_loss(self._trained, batches, self._head)
        else:
            totals = completion_losses_by_row(self._trained, batches, self._head, by_row.add)
        loss_sum, tokens = self._group.all_reduce_sum(*totals)
        return Validation(loss_sum / tokens if tokens else math.nan)

    def collect_state(self) -> StateSnapshot:
        """Collect the state that `train` resumes from."""
        return collect_whole(self, self._trained, self._group)

    @override
    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: torch.nn.Module | None = None
    ) -> None:
        folder = Path(resume_from_checkpoint)
        if is_sharded(folder):
            load_weights(self._trained, folder)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    @override
    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and is_sharded(Path(checkpoint)):
            load_optimizer(self, self._trained, Path(checkpoint))
        else:
            super()._load_optimizer_and_scheduler(checkpoint)
