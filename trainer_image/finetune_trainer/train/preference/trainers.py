"""TRL's trainers with our rows, and with their state written where we say.

The reference model of DPO and KTO is the model that training begins from: the base with its adapter switched
off, or, where a Checkpoint is continued, a frozen copy of that adapter. Neither changes in training nor is
part of a resume state, so that an interrupted run goes on exactly; there is no second copy of the base model.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PrinterCallback, Trainer, TrainingArguments
from trl.experimental.orpo import ORPOConfig, ORPOTrainer
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_config import KTOConfig
from trl.trainer.kto_trainer import KTOTrainer
from typing_extensions import override

from finetune_trainer.contract.hyperparameters import Hyperparameters
from finetune_trainer.contract.method import Method
from finetune_trainer.contract.vocabulary import MethodType
from finetune_trainer.distributed.group import ALONE
from finetune_trainer.tokens.answers import EncodedAnswers
from finetune_trainer.train.preference.rewards import RewardSums
from finetune_trainer.train.preference.rows import TokenizedRows, columns
from finetune_trainer.train.protocol import Validation
from finetune_trainer.train.throughput import StepFigures
from finetune_trainer.train.trainer import StepSums, arguments, collect_state

REFERENCE: Final = "ref"
"""Name under which TRL keeps a copy of the adapter that training begins from."""


class PreferenceTrainer(Trainer):
    """What the three have in common; a mixin before TRL's class."""

    method: MethodType
    unit = "a row"
    sums: StepSums
    _trained: PeftModel
    _rewards: RewardSums
    _metrics: Any

    def set_up(self, model: PeftModel) -> None:
        """After TRL's own start."""
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
        """TRL's mean loss of the batch's rows; in training, counted."""
        loss, rewards = self._measure(model, inputs)
        rows = torch.tensor(rewards.rows)
        self.sums.add(loss * rows, rows, self._tokens(inputs))
        self._rewards += rewards
        return loss

    def batches(self, rows: Sequence[EncodedAnswers]) -> list[dict[str, Tensor]]:
        """Held-out rows as `validate` takes them."""
        size = self.args.per_device_train_batch_size
        held_out = columns(self.method, rows, size, self.args.seed)
        return [
            {
                name: tensor.to(self.args.device)
                for name, tensor in self.data_collator(held_out[at : at + size]).items()
            }
            for at in range(0, len(held_out), size)
        ]

    @property
    def loss_sum(self) -> float:
        """Of the optimizer step in progress."""
        return self.sums.loss_sum

    def take_step(self) -> StepFigures:
        """With the rewards of its answers."""
        rewards, self._rewards = self._rewards, RewardSums()
        return self.sums.take(rewards)

    def validate(self, batches: Iterable[Mapping[str, Tensor]]) -> Validation:
        """Mean loss of the rows, and their rewards."""
        self._trained.eval()
        loss, rewards = 0.0, RewardSums()
        with torch.no_grad():
            for batch in batches:
                batch_loss, batch_rewards = self._measure(self._trained, dict(batch))
                loss += float(batch_loss) * batch_rewards.rows
                rewards += batch_rewards
        return Validation(loss / rewards.rows, rewards)

    def collect_state(self) -> Callable[[Path], None]:
        """What `train` reads to resume."""
        return collect_state(self, ALONE)

    def _measure(self, model: torch.nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, RewardSums]:
        """TRL's loss of a batch, and its rewards, which TRL keeps for its own log."""
        figures = self._figures()
        figures.clear()
        loss: Any = super().compute_loss(model, inputs)
        rewards = self._rewards_of({name: values[-1] for name, values in figures.items()}, inputs)
        figures.clear()
        return loss, rewards

    def _send_telemetry(self) -> None:
        """TRL would tell the hub of each run."""

    def _figures(self) -> dict[str, list[float]]:
        """Where TRL keeps them, by their names in its log."""
        figures: dict[str, list[float]] = self._metrics["train" if self._trained.training else "eval"]
        return figures

    def _rewards_of(self, figures: Mapping[str, float], inputs: Mapping[str, Tensor]) -> RewardSums:
        """Sums from TRL's means of a batch of pairs."""
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
        raise NotImplementedError

    def _tokens(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Tokens of a batch, padding not counted."""
        return torch.stack(
            [mask.sum() for name, mask in inputs.items() if name.endswith("attention_mask")]
        ).sum()


class DPO(PreferenceTrainer, DPOTrainer):
    """Direct Preference Optimization (Rafailov et al., 2023)."""

    method = "DPO"

    @override
    def _pairs(self, inputs: Mapping[str, Tensor]) -> int:
        return len(inputs["input_ids"]) // 2


class KTO(PreferenceTrainer, KTOTrainer):
    """Kahneman-Tversky Optimization (Ethayarajh et al., 2024)."""

    method = "KTO"

    @override
    def _rewards_of(self, figures: Mapping[str, float], inputs: Mapping[str, Tensor]) -> RewardSums:
        good = int(inputs["label"].sum())
        bad = len(inputs["label"]) - good
        return RewardSums(
            chosen=figures["rewards/chosen"] * good if good else 0,
            chosen_rows=good,
            rejected=figures["rewards/rejected"] * bad if bad else 0,
            rejected_rows=bad,
        )


class ORPO(PreferenceTrainer, ORPOTrainer):
    """Odds Ratio Preference Optimization (Hong et al., 2024); needs no reference."""

    method = "ORPO"

    @override
    def _figures(self) -> dict[str, list[float]]:
        figures: dict[str, list[float]] = self._stored_metrics["train"]
        return figures

    @override
    def _pairs(self, inputs: Mapping[str, Tensor]) -> int:
        return len(inputs["chosen_input_ids"])


TRAINERS: Final[Mapping[MethodType, tuple[type[TrainingArguments], Any]]] = {
    "DPO": (DPOConfig, DPO),
    "KTO": (KTOConfig, KTO),
    "ORPO": (ORPOConfig, ORPO),
}


def preference_trainer(
    model: PeftModel,
    rows: Sequence[EncodedAnswers],
    *,
    tokenizer: PreTrainedTokenizerBase,
    method: Method,
    hyperparameters: Hyperparameters,
    folder: Path,
    continues: bool,
) -> PreferenceTrainer:
    """The trainer of a method; `continues` where the adapter of `model` was trained before."""
    size, seed = hyperparameters.per_device_batch_size, hyperparameters.seed
    settings: dict[str, Any] = {
        "beta": method.preference.beta,
        "max_length": hyperparameters.max_sequence_length,
    }
    if method.type == "KTO":
        settings["desirable_weight"] = method.preference.desirable_weight or 1
        settings["undesirable_weight"] = method.preference.undesirable_weight or 1
    config, trainer_class = TRAINERS[method.type]
    trainer: PreferenceTrainer = trainer_class(
        model=model,
        args=arguments(config, hyperparameters, model.device, folder, **settings),
        train_dataset=TokenizedRows.of(columns(method.type, rows, size, seed)),
        processing_class=tokenizer,
    )
    if not continues and REFERENCE in model.peft_config:
        model.delete_adapter(REFERENCE)
    trainer.set_up(model)
    return trainer
