"""The trainers of the methods that train on preference data."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from finetune_trainer.contract.hyperparameters import Hyperparameters
from finetune_trainer.contract.method import Method
from finetune_trainer.contract.methods import MethodType
from finetune_trainer.tokens.answers import EncodedAnswers
from finetune_trainer.train.preference.dpo import DPOPreferenceTrainer
from finetune_trainer.train.preference.kto import KTOPreferenceTrainer
from finetune_trainer.train.preference.orpo import ORPOPreferenceTrainer
from finetune_trainer.train.preference.preferencetrainer import PreferenceTrainer
from finetune_trainer.train.preference.trlrows import TokenizedRows
from finetune_trainer.train.trainer import training_arguments

TRAINERS: Final[Mapping[MethodType, Any]] = {
    each.method: each for each in (DPOPreferenceTrainer, KTOPreferenceTrainer, ORPOPreferenceTrainer)
}
REFERENCE: Final = "ref"
"""TRL's name for its copy of the adapter that training starts from."""


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
    """Create the trainer of a method; `continues` says whether another run trained the adapter of `model`."""
    trainer_class = TRAINERS[method.type]
    columns = trainer_class.columns(rows, hyperparameters.per_device_batch_size, hyperparameters.seed)
    trainer: PreferenceTrainer = trainer_class(
        model=model,
        args=training_arguments(
            trainer_class.config_class,
            hyperparameters,
            model.device,
            folder,
            max_length=hyperparameters.max_sequence_length,
            **trainer_class.method_arguments(method.preference),
        ),
        train_dataset=TokenizedRows.of(columns),
        processing_class=tokenizer,
    )
    if not continues and REFERENCE in model.peft_config:
        model.delete_adapter(REFERENCE)
    trainer.set_up(model)
    return trainer
