"""transformers' Trainer with our loss, and with its state written by our code."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any, Final, TypeVar

import torch
from peft import PeftModel
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed
from typing_extensions import override

from finetune_trainer.contract.hyperparameters import Hyperparameters
from finetune_trainer.distributed.group import ALONE, Group
from finetune_trainer.model.completionloss import completion_loss, total_completion_loss
from finetune_trainer.model.head import ChunkedHead, chunked_head
from finetune_trainer.tokens.batching import Collate, pack, token_count
from finetune_trainer.tokens.encode import EncodedRow
from finetune_trainer.train.modelsetup import Trainable
from finetune_trainer.train.parallel.sharding import ShardedBatches, blank_row
from finetune_trainer.train.preference.rewards import RewardSums
from finetune_trainer.train.protocol import Validation
from finetune_trainer.train.throughput import StepFigures

WARMUP_RATIO: Final = 0.05
"""Share of all steps in which the learning rate rises; after that it falls linearly to 0."""
MAX_GRADIENT_NORM: Final = 1.0

TRAINER_STATE: Final = "trainer_state.json"


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


def collect_state(
    trainer: Trainer, group: Group, write_optimizer: Callable[[Path], None] | None = None
) -> Callable[[Path], None]:
    """Collect the state that `train` resumes from: optimizer, scheduler, position, and all random numbers.

    Collective. Returns a function with which rank 0 writes the files. With `write_optimizer`, that function
    writes optimizer and scheduler instead of the Trainer.
    """
    with TemporaryDirectory() as folder:
        trainer._save_rng_state(folder)
        mine = Path(folder, _random_numbers_file(group.rank, group.size)).read_bytes()
        random_numbers = group.gather(mine)

    def write(folder: Path) -> None:
        if write_optimizer is None:
            trainer._save_optimizer_and_scheduler(str(folder))
        else:
            write_optimizer(folder)
        for rank, content in enumerate(random_numbers):
            (folder / _random_numbers_file(rank, group.size)).write_bytes(content)
        trainer.state.save_to_json(str(folder / TRAINER_STATE))

    return write


def _random_numbers_file(rank: int, processes: int) -> str:
    """The file name that transformers uses."""
    return "rng_state.pth" if processes == 1 else f"rng_state_{rank}.pth"


class StepSums:
    """Sums over the batches of the current optimizer step."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(3, dtype=torch.float64, device=device)

    def add(self, loss_sum: Tensor, labels: Tensor, tokens: Tensor) -> None:
        """Count one batch; the sums stay on the device, so this does not synchronize."""
        self._sums += torch.stack(
            [value.detach().double().to(self._sums.device) for value in (loss_sum, labels, tokens)]
        )

    @property
    def loss_sum(self) -> float:
        """Summed loss of the current step so far."""
        return float(self._sums[0])

    def take(self, rewards: RewardSums | None = None) -> StepFigures:
        """Return the figures of the step, with these rewards, and start the next step."""
        loss_sum, labels, tokens = self._sums.tolist()
        self._sums.zero_()
        return StepFigures(loss_sum, int(labels), int(tokens), rewards)


class CompletionTrainer(Trainer):
    """Trains on completion tokens. All tokens of an optimizer step have equal weight, across its batches."""

    loss_is_scaled_for_ga = True
    unit = "nats per token"
    settings: Mapping[str, Any] = MappingProxyType({})
    """Additional arguments of the Trainer."""

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
    ) -> None:
        self._rows = rows
        super().__init__(
            model=model,
            args=training_arguments(TrainingArguments, hyperparameters, device, folder, **self.settings),
            data_collator=collate,
            train_dataset=rows,
        )
        if not group.is_main_process:
            set_seed(hyperparameters.seed + group.rank)  # different dropout in each process
        self.remove_callback(PrinterCallback)
        self.model_accepts_loss_kwargs = True  # makes the Trainer count the labelled tokens of a whole step
        self.sums = StepSums(device)
        self._group = group
        # DDP expects gradients only for weights that the model's own pass uses, not for a trained head.
        self._head = probe_head(model, rows) if group.size == 1 or isinstance(model, PeftModel) else None
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
        """The batches of this process."""
        if self._group.size == 1:
            return super().get_train_dataloader()
        size = self.args.per_device_train_batch_size
        return DataLoader(
            [*self._rows, blank_row(self._rows[0])],  # type: ignore[arg-type] # a list is a Dataset
            batch_sampler=ShardedBatches(len(self._rows), size, self.args.seed, self._group),
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def batches(self, rows: Sequence[EncodedRow]) -> list[dict[str, Tensor]]:
        """Collate this process's share of held-out rows for `validate`."""
        size = self.args.per_device_train_batch_size
        all_batches = [rows[at : at + size] for at in range(0, len(rows), size)]
        return [
            {name: tensor.to(self.args.device) for name, tensor in self._collate(batch).items()}
            for batch in self._group.share(all_batches, [blank_row(self._rows[0])])
        ]

    @property
    def loss_sum(self) -> float:
        """Summed loss of the current optimizer step."""
        return self.sums.loss_sum

    def take_step(self) -> StepFigures:
        """Return the figures of the step, without rewards."""
        return self.sums.take()

    def validate(self, batches: Iterable[Mapping[str, Tensor]]) -> Validation:
        """Compute the mean loss over the labelled tokens of all processes."""
        totals = total_completion_loss(self._trained, batches, self._head)
        loss_sum, tokens = self._group.all_reduce_sum(*totals)
        return Validation(loss_sum / tokens if tokens else math.nan)

    def collect_state(self) -> Callable[[Path], None]:
        """Collect the state of all processes that `train` resumes from."""
        return collect_state(self, self._group)


def probe_head(model: Trainable, rows: Sequence[EncodedRow]) -> ChunkedHead | None:
    """Return the output head, after a test on the shortest row; None if it cannot be chunked."""
    shortest = pack([min(rows, key=lambda row: len(row.input_ids))])
    return chunked_head(
        model, {name: tensor.to(model.device) for name, tensor in shortest.items() if name != "labels"}
    )
