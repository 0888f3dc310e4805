# SPDX-License-Identifier: Apache-2.0
"""transformers' Trainer with the losses of preference methods."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PrinterCallback, TrainingArguments
from typing_extensions import override

from finetune_trainer.contract.hyperparameters import Hyperparameters
from finetune_trainer.distributed.process_group import Group
from finetune_trainer.tokens.batching import row_lengths, token_count
from finetune_trainer.tokens.encoding import EncodedAnswers
from finetune_trainer.train.batches import (
    CollatedBatches,
    Division,
    LazyBatches,
    RowBatches,
    Steps,
    share_batches,
)
from finetune_trainer.train.collation import probe_head
from finetune_trainer.train.figures import RewardSums, RowLossCollector, StepFigures, Validation
from finetune_trainer.train.model_setup import Trainable
from finetune_trainer.train.preference.preference_loss import (
    ComparedRows,
    PreferenceLoss,
    ScoredModel,
    Totals,
)
from finetune_trainer.train.preference.reference import ReferenceLikelihoods, reference_log_likelihoods
from finetune_trainer.train.states.resume_states import StateSnapshot
from finetune_trainer.train.states.snapshot import collect_whole
from finetune_trainer.train.trainer import StepSums, StepTrainer, training_arguments


class PreferenceTrainer(StepTrainer):
    """Trains on answers to compare. All rows of an optimizer step have equal weight, across its batches."""

    unit = "per row"

    def __init__(
        self,
        model: Trainable,
        rows: Sequence[EncodedAnswers],
        loss: PreferenceLoss[Any],
        hyperparameters: Hyperparameters,
        folder: Path,
        *,
        division: Division,
        device: torch.device,
        group: Group,
        continues: bool,
        references: ReferenceLikelihoods,
    ) -> None:
        """Compute what the reference model says about the rows, unless `references` has it. Collective.

        `division` divides the rows of a step; `continues`: another run trained the weights of `model`.
        """
        super().__init__(
            model=model,
            args=training_arguments(TrainingArguments, hyperparameters, device, folder),
            data_collator=loss.collate,
            train_dataset=rows,
        )
        self.remove_callback(PrinterCallback)
        lengths = row_lengths(rows)
        shortest = rows[min(range(len(rows)), key=lengths.__getitem__)]
        head = probe_head(model, [shortest.row(shortest.answer)])
        self.sums = StepSums(device)
        self._batch_size = hyperparameters.batch_size
        self._division = division
        self._loss = loss
        self._group = group
        self._model = ScoredModel.of(model, head)
        self._continues, self._references = continues, references
        self._rewards = torch.zeros(len(RewardSums.model_fields), dtype=torch.float64, device=device)
        self._totals = Totals()
        self._lengths = lengths
        steps = islice(self._steps(), hyperparameters.total_steps)
        self._rows = self._compared(
            rows,
            (batch for step in steps for batch in step),
            read=hyperparameters.total_steps * hyperparameters.batch_size,
        )

    @override
    def get_train_dataloader(self) -> DataLoader[Any]:
        """The batches of this process in each step."""
        return self.step_loader(CollatedBatches(self._rows, self._loss.collate), self._steps())

    def _steps(self) -> Steps:
        return Steps(self._lengths, self._batch_size, self._division, self.args.seed, self._group)

    def _compared(
        self, rows: Sequence[EncodedAnswers], batches: Iterable[Sequence[int]], *, read: int
    ) -> ComparedRows:
        """The rows, with what the reference model says about the first `read` of the first epoch. Collective.

        Called before training, when the weights are those of the start, also in a run that resumes.
        `batches` has this process's share of these rows. They are the batches of the first epoch, so that the
        first step is not rounded otherwise than its reference.
        """
        compared = ComparedRows(rows, self.args.seed)
        if not self._loss.has_reference:
            return compared
        indices = sorted(compared.order[:read])
        compared.reference[torch.tensor(indices)] = self._references.look_up(
            (self._loss.sequences(compared[index]) for index in indices),
            partial(self._reference, compared, indices, batches),
        )
        return compared

    def _reference(
        self, rows: ComparedRows, indices: Sequence[int], batches: Iterable[Sequence[int]]
    ) -> Tensor:
        """The log-likelihoods of this process's share of the rows at `indices`."""
        places = {index: place for place, index in enumerate(indices)}
        return reference_log_likelihoods(
            self._model,
            self._loss,
            (
                ([places[index] for index in batch if index in places], [rows[index] for index in batch])
                for batch in batches
            ),
            continues=self._continues,
            references=self._references,
            count=len(indices),
        )

    @override
    def count_items(self, batches: list[dict[str, Any]], device: torch.device) -> None:
        """Keep the totals of the step over all processes for its losses."""
        own = sum((self._loss.totals(self._model, batch) for batch in batches), Totals())
        self._totals = own.all_reduced(self._group)

    @override
    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The batch's share of the step's mean loss per row."""
        scores = self._loss.scores(self._model.wrapped_by(model), inputs)
        loss_sum = self._loss.loss_sum(scores, self._totals)
        counts = inputs["counts"]
        tokens = sum(token_count(part) for part in inputs["parts"]) * counts.any()
        self.sums.add(loss_sum, counts.sum(), tokens)
        self._rewards += self._loss.reward_sums(scores)
        # DDP averages the gradients of the processes, but those of the step's rows must be summed.
        return loss_sum / self._totals.rows * self._group.size

    def batches(self, rows: Sequence[EncodedAnswers]) -> LazyBatches:
        """This process's share of held-out rows for `validate`, the longest first."""
        if not rows:
            return LazyBatches([], self._loss.collate, self.args.device)
        share = share_batches(row_lengths(rows), range(len(rows)), self._division, self._group)
        compared = self._compared(rows, share, read=len(rows))
        return LazyBatches(RowBatches(compared, share), self._loss.collate, self.args.device)

    def take_step(self) -> StepFigures:
        """Return the figures of the step, with the rewards of its answers."""
        rewards = RewardSums.of(self._rewards.tolist())
        self._rewards.zero_()
        return self.sums.take(rewards)

    def validate(
        self, batches: Iterable[Mapping[str, Any]], by_row: RowLossCollector | None = None
    ) -> Validation:
        """Compute the mean loss of the rows of all processes, and their rewards."""
        self._model.trained.eval()
        scores, counts, totals = [], [], Totals()
        rewards = torch.zeros_like(self._rewards)
        with torch.no_grad():
            for batch in batches:
                scores.append(self._loss.scores(self._model, dict(batch)))
                counts.append(batch["counts"])
                totals += self._loss.totals(self._model, dict(batch))
                rewards += self._loss.reward_sums(scores[-1])
            totals = totals.all_reduced(self._group)
            losses = [self._loss.row_losses(each, totals) for each in scores]
        if by_row is not None:
            for each, counted in zip(losses, counts, strict=True):
                by_row.add(each, counted)
        own = sum(float(each.sum()) for each in losses)
        (loss_sum,) = self._group.all_reduce_sum(own)
        return Validation(loss_sum / totals.rows, RewardSums.of(rewards.tolist()).all_reduced(self._group))

    def collect_state(self) -> StateSnapshot:
        """Collect the state that `train` resumes from."""
        return collect_whole(self, self._model.trained, self._group)
