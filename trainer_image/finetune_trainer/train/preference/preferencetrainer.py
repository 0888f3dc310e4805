"""TRL's trainers with our rows, and with their state written by our code.

The reference model of DPO and KTO is the model that training starts from: the base model with its adapter
disabled, or, if the run continues from a Checkpoint, a frozen copy of that adapter. It does not change in
training and is not part of a resume state, so an interrupted run resumes exactly. There is no second copy of
the base model.
"""

from collections.abc import Iterable, Mapping, Sequence, Sized
from typing import Any, ClassVar

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PrinterCallback, TrainingArguments
from typing_extensions import override

from finetune_trainer.contract.method import Preference
from finetune_trainer.contract.methods import MethodType
from finetune_trainer.distributed.group import ALONE
from finetune_trainer.tokens.answers import EncodedAnswers
from finetune_trainer.train.gradientnorm import NormKeeper
from finetune_trainer.train.heldout import LazyBatches
from finetune_trainer.train.preference.rewards import RewardSums
from finetune_trainer.train.preference.trlrows import TRLRow
from finetune_trainer.train.protocol import Validation
from finetune_trainer.train.states.pendingsave import StateSnapshot
from finetune_trainer.train.states.snapshot import collect_whole
from finetune_trainer.train.throughput import StepFigures
from finetune_trainer.train.trainer import StepSums


class PreferenceTrainer(NormKeeper):
    """The common part of the methods; a mixin that precedes TRL's class."""

    method: ClassVar[MethodType]
    config_class: ClassVar[type[TrainingArguments]]
    """TRL's class for the arguments of the method."""
    unit = "per row"
    sums: StepSums
    _trained: PeftModel
    _rewards: RewardSums
    _metrics: Any

    @staticmethod
    def columns(rows: Sequence[EncodedAnswers], batch_size: int, seed: int) -> list[TRLRow]:
        """Convert to the rows of TRL's trainer. If the order changes, it depends only on the seed."""
        raise NotImplementedError

    @staticmethod
    def method_arguments(preference: Preference) -> dict[str, Any]:
        """The settings of the method, with the names of `config_class`."""
        return {"beta": preference.beta}

    def set_up(self, model: PeftModel) -> None:
        """Complete the trainer after TRL's own initialization."""
        self.remove_callback(PrinterCallback)
        self._trained = model
        self.sums = StepSums(model.device)
        self._rewards = RewardSums()

    @override
    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return TRL's mean loss over the rows of the batch, and count it for the step."""
        loss, rewards = self._measure(model, inputs)
        rows = torch.tensor(rewards.rows)
        self.sums.add(loss * rows, rows, self._tokens(inputs))
        self._rewards += rewards
        return loss

    def batches(self, rows: Sequence[EncodedAnswers]) -> LazyBatches:
        """The batches of held-out rows for `validate`, those with the longest rows first."""
        size = self.args.per_device_train_batch_size
        held_out = self.columns(rows, size, self.args.seed)
        batches = [held_out[start : start + size] for start in range(0, len(held_out), size)]
        batches.sort(key=_max_tokens, reverse=True)
        return LazyBatches(batches, self.data_collator, self.args.device)

    def take_step(self) -> StepFigures:
        """Return the figures of the step, with the rewards of its answers."""
        rewards, self._rewards = self._rewards, RewardSums()
        return self.sums.take(rewards)

    def validate(self, batches: Iterable[Mapping[str, Tensor]]) -> Validation:
        """Compute the mean loss of the rows, and their rewards."""
        self._trained.eval()
        loss, rewards = 0.0, RewardSums()
        with torch.no_grad():
            for batch in batches:
                batch_loss, batch_rewards = self._measure(self._trained, dict(batch))
                loss += float(batch_loss) * batch_rewards.rows
                rewards += batch_rewards
        return Validation(loss / rewards.rows, rewards)

    def collect_state(self) -> StateSnapshot:
        """Collect the state that `train` resumes from."""
        return collect_whole(self, self._trained, ALONE)

    def _measure(self, model: torch.nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, RewardSums]:
        """Compute TRL's loss of a batch, and take the rewards that TRL stores for its own log."""
        figures = self._figures()
        figures.clear()
        loss: Any = super().compute_loss(model, inputs)
        rewards = self._rewards_of({name: values[-1] for name, values in figures.items()}, inputs)
        figures.clear()
        return loss, rewards

    def _send_telemetry(self) -> None:
        """Do nothing: TRL would report each run to the Hugging Face Hub."""

    def _figures(self) -> dict[str, list[float]]:
        """The figures that TRL stores, by their names in its log."""
        figures: dict[str, list[float]] = self._metrics["train" if self._trained.training else "eval"]
        return figures

    def _rewards_of(self, figures: Mapping[str, float], inputs: Mapping[str, Tensor]) -> RewardSums:
        """Compute sums from TRL's means over a batch of pairs."""
        pairs = self._pairs(inputs)
        return RewardSums(
            chosen=figures["rewards/chosen"] * pairs,
            chosen_rows=pairs,
            rejected=figures["rewards/rejected"] * pairs,
            rejected_rows=pairs,
            right=round(figures["rewards/accuracies"] * pairs),
            pairs=pairs,
        )

    def _pairs(self, inputs: Mapping[str, Tensor]) -> int:
        """Number of pairs of a batch."""
        raise NotImplementedError

    def _tokens(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Number of tokens of a batch, without padding."""
        return torch.stack(
            [mask.sum() for name, mask in inputs.items() if name.endswith("attention_mask")]
        ).sum()


def _max_tokens(rows: Sequence[TRLRow]) -> int:
    """Tokens of the longest row of a batch, with all of its answers."""
    return max(sum(len(column) for column in row.values() if isinstance(column, Sized)) for row in rows)
