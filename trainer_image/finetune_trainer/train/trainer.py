# SPDX-License-Identifier: Apache-2.0
"""transformers' Trainer with whole optimizer steps as its batches, our loss, and a state written by our code.

With full sharding (PyTorch's FSDP2), each process holds its rows of every layer with their gradients and
optimizer state, and gathers a layer only while it is computed. Checkpoints are those of one process.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, Dataset
from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed
from typing_extensions import override

from finetune_trainer.contract.hyperparameters import Hyperparameters, Scheduler
from finetune_trainer.distributed.process_group import ALONE, Group
from finetune_trainer.model.completion_loss import (
    completion_loss,
    completion_losses_by_row,
    total_completion_loss,
)
from finetune_trainer.model.device import return_freed_memory
from finetune_trainer.tokens.batching import (
    Collate,
    collate_with_row_labels,
    row_lengths,
    token_count,
)
from finetune_trainer.tokens.encoding import EncodedRow
from finetune_trainer.train.batches import (
    CollatedBatches,
    Division,
    LazyBatches,
    RowBatches,
    RowsWithBlank,
    Steps,
    share_batches,
)
from finetune_trainer.train.collation import probe_head
from finetune_trainer.train.figures import RewardSums, RowLossCollector, StepFigures, Validation
from finetune_trainer.train.model_setup import Trainable
from finetune_trainer.train.parallel.shards import load_optimizer, load_weights
from finetune_trainer.train.state_folders import is_sharded
from finetune_trainer.train.states.resume_states import StateSnapshot
from finetune_trainer.train.states.snapshot import collect_sharded, collect_whole


class StepTrainer(Trainer):
    """Computes the batches of an optimizer step, which the loader returns as a list.

    Their number differs from step to step, which transformers' own accumulation does not support.
    """

    loss_is_scaled_for_ga = True
    reduces_each_batch = False
    """Whether processes add up their gradients after each batch of a step, instead of once per step."""
    _gradient_norm: Any = None

    def step_loader(self, batches: Dataset[dict[str, Any]], steps: Steps) -> DataLoader[Any]:
        """The loader of `steps`; `batches` collates each of their batches."""
        return DataLoader(
            batches,
            batch_sampler=steps,
            collate_fn=list,
            pin_memory=self.args.dataloader_pin_memory,
        )

    @override
    def training_step(
        self,
        model: torch.nn.Module,
        inputs: Any,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Compute all batches of a step; processes exchange gradients at the end."""
        loss = torch.zeros((), device=self.args.device)
        for left, batch in zip(range(len(inputs) - 1, -1, -1), inputs, strict=True):
            waits = left > 0 and not self.reduces_each_batch
            # The Trainer averages the gradients of an adapter over a sharded base model when this is set.
            self.accelerator.gradient_state._set_sync_gradients(not waits)
            with self.accelerator.no_sync(model) if waits else nullcontext():
                loss += super().training_step(model, batch, num_items_in_batch)
            if left:
                self.control = self.callback_handler.on_substep_end(self.args, self.state, self.control)
        return loss

    @override
    def _get_num_items_in_batch(
        self, batch_samples: Sequence[Any], device: torch.device
    ) -> Tensor | int | None:
        return self.count_items([batch for step in batch_samples for batch in step], device)

    def count_items(self, batches: list[dict[str, Any]], device: torch.device) -> Tensor | int | None:
        """Number of labelled tokens of a step in all processes; `batches` are those of this process."""
        return super()._get_num_items_in_batch(batches, device)

    @override
    def floating_point_ops(self, inputs: Any) -> int:
        """Return 0: nothing reads the estimate, which walks over all weights for each batch."""
        return 0

    @override
    def _clip_grad_norm(self, model: torch.nn.Module) -> Any:
        self._gradient_norm = super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]
        return self._gradient_norm

    def gradient_norm(self) -> float:
        """Norm of all gradients of the current optimizer step before clipping."""
        norm = self._gradient_norm
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


MAX_GRADIENT_NORM: Final = 1.0
SCHEDULERS: Final[Mapping[Scheduler, str]] = {
    "Linear": "linear",
    "Cosine": "cosine",
    "Constant": "constant_with_warmup",
}
"""Schedules by their names in transformers."""


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
        max_steps=hyperparameters.total_steps,
        learning_rate=hyperparameters.learning_rate,
        seed=hyperparameters.seed,
        data_seed=hyperparameters.seed,
        lr_scheduler_type=SCHEDULERS[hyperparameters.scheduler],
        warmup_steps=hyperparameters.warmup_ratio,  # a share of all steps if it is below 1
        weight_decay=hyperparameters.weight_decay,
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


class CompletionTrainer(StepTrainer):
    """Trains on completion tokens. All tokens of an optimizer step have equal weight, across its batches."""

    unit = "nats per token"

    def __init__(
        self,
        model: Trainable,
        rows: Sequence[EncodedRow],
        collate: Collate,
        hyperparameters: Hyperparameters,
        folder: Path,
        *,
        division: Division,
        device: torch.device,
        group: Group = ALONE,
    ) -> None:
        """`division` divides the rows of a step into batches, and `collate` makes their tensors."""
        self._rows = rows
        self._batch_size = hyperparameters.batch_size
        self._division = division
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
        """The batches of this process in each step."""
        lengths, seed = row_lengths(self._rows), self.args.seed
        return self.step_loader(
            CollatedBatches(RowsWithBlank(self._rows), self._collate),
            Steps(lengths, self._batch_size, self._division, seed, self._group),
        )

    def batches(self, rows: Sequence[EncodedRow]) -> LazyBatches:
        """This process's share of held-out rows for `validate`, the longest first."""
        share = share_batches(row_lengths(rows), range(len(rows)), self._division, self._group)
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


COPIES_ON_CPU = False
"""Whether a state is copied before it is written also on a CPU, for tests."""


class FullyShardedTrainer(CompletionTrainer):
    """Trains a model that was sharded when it was loaded."""

    reduces_each_batch = True  # gradients that wait for the last batch are not sharded

    @override
    def collect_state(self) -> StateSnapshot:
        return_freed_memory()  # of the step, since the limit of a pod counts it while the files are written
        # On a CPU a copy would need the memory of model and optimizer once more.
        copies = self.args.device.type != "cpu" or COPIES_ON_CPU
        return collect_sharded(self, self._trained, self._group, copies=copies)

    @override
    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: torch.nn.Module | None = None
    ) -> None:
        load_weights(self._trained, Path(resume_from_checkpoint))

    @override
    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_optimizer(self, self._trained, Path(checkpoint))
