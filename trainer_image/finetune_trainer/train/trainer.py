"""transformers' Trainer with our loss, and with its state written where we say."""

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed
from typing_extensions import override

from finetune_trainer.contract import Hyperparameters
from finetune_trainer.distributed.group import ALONE, Group
from finetune_trainer.model.batch import Collate, token_count
from finetune_trainer.model.encode import EncodedRow
from finetune_trainer.model.loss import completion_loss
from finetune_trainer.train.method import Trainable
from finetune_trainer.train.sharding import ShardedBatches, blank

WARMUP: Final = 0.05
"""Part of all steps in which the learning rate rises; from there it falls linearly to 0."""
LARGEST_GRADIENT_NORM: Final = 1.0

TRAINER_STATE: Final = "trainer_state.json"


class StepSums:
    """Sums over the batches of the optimizer step in progress."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(3, dtype=torch.float64, device=device)

    def add(self, nats: Tensor, labels: Tensor, tokens: Tensor) -> None:
        """Count one batch; stays on the device, so that it waits for nothing."""
        self._sums += torch.stack(
            [value.detach().double().to(self._sums.device) for value in (nats, labels, tokens)]
        )

    @property
    def nats(self) -> float:
        """Summed loss."""
        return float(self._sums[0])

    def take(self) -> tuple[float, int, int]:
        """Summed loss, labelled tokens, and tokens read without padding; begins the next step."""
        nats, labels, tokens = self._sums.tolist()
        self._sums.zero_()
        return nats, int(labels), int(tokens)


class CompletionTrainer(Trainer):
    """Learns completion tokens; each token counts the same, in whatever batch of a step it is."""

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: Trainable,
        rows: Sequence[EncodedRow],
        collate: Collate,
        hyperparameters: Hyperparameters,
        folder: Path,
        *,
        group: Group = ALONE,
    ) -> None:
        on_gpu = model.device.type == "cuda"
        arguments = TrainingArguments(
            output_dir=str(folder),
            num_train_epochs=hyperparameters.epochs,
            learning_rate=hyperparameters.learning_rate,
            per_device_train_batch_size=hyperparameters.per_device_batch_size,
            gradient_accumulation_steps=hyperparameters.gradient_accumulation_steps,
            seed=hyperparameters.seed,
            data_seed=hyperparameters.seed,
            lr_scheduler_type="linear",
            warmup_steps=WARMUP,
            weight_decay=0,
            max_grad_norm=LARGEST_GRADIENT_NORM,
            bf16=on_gpu,
            use_cpu=not on_gpu,
            dataloader_pin_memory=on_gpu,
            activation_checkpointing=hyperparameters.gradient_checkpointing,
            # The other way needs inputs that have gradients, which those of a frozen base model have not.
            activation_checkpointing_kwargs={"use_reentrant": False},
            remove_unused_columns=False,
            logging_strategy="no",
            eval_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            log_level="error",
            # There are none; but looking keeps DDP from ordering its sums anew after a process's first step,
            # by which a run that was restarted would be rounded differently.
            ddp_find_unused_parameters=not on_gpu,
        )
        self._rows = rows
        super().__init__(model=model, args=arguments, data_collator=collate, train_dataset=rows)
        if not group.leads:
            set_seed(hyperparameters.seed + group.rank)  # a dropout of its own
        self.remove_callback(PrinterCallback)
        self.model_accepts_loss_kwargs = True  # makes it count the labelled tokens of a whole step
        self.sums = StepSums(model.device)
        self._group = group

    @override
    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The batch's share of the step's mean loss a token."""
        if num_items_in_batch is None:
            raise ValueError("the Trainer did not count the labelled tokens of the step")
        nats, labels = completion_loss(model, inputs)
        tokens = token_count(inputs)
        if self._group.size > 1:
            tokens = tokens * (labels > 0)  # none for a blank
        self.sums.add(nats, labels, tokens)
        # The gradients of several processes are averaged, and those of the step's tokens are to be summed.
        return nats / num_items_in_batch * self._group.size

    @override
    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches of this process."""
        if self._group.size == 1:
            return super().get_train_dataloader()
        size = self.args.per_device_train_batch_size
        return DataLoader(
            [*self._rows, blank(self._rows[0])],  # type: ignore[arg-type] # a list is a Dataset
            batch_sampler=ShardedBatches(len(self._rows), size, self.args.seed, self._group),
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def collect_state(self) -> Callable[[Path], None]:
        """What `train` reads to resume: optimizer, scheduler, position, and every process's random numbers.

        Every process takes part; what it returns writes the files, in the leader.
        """
        with TemporaryDirectory() as folder:
            self._save_rng_state(folder)
            (file,) = Path(folder).iterdir()
            random_numbers = self._group.gathered((file.name, file.read_bytes()))

        def write(folder: Path) -> None:
            self._save_optimizer_and_scheduler(str(folder))
            for name, content in random_numbers:
                (folder / name).write_bytes(content)
            self.state.save_to_json(str(folder / TRAINER_STATE))

        return write
