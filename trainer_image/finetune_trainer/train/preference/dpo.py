"""Direct Preference Optimization."""

from collections.abc import Mapping, Sequence

from torch import Tensor
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from typing_extensions import override

from finetune_trainer.tokens.answers import EncodedAnswers
from finetune_trainer.train.preference.preferencetrainer import PreferenceTrainer
from finetune_trainer.train.preference.trlrows import TRLRow


class DPOPreferenceTrainer(PreferenceTrainer, DPOTrainer):
    """Direct Preference Optimization (Rafailov et al., 2023)."""

    method = "DPO"
    config_class = DPOConfig

    @override
    @staticmethod
    def columns(rows: Sequence[EncodedAnswers], batch_size: int, seed: int) -> list[TRLRow]:
        return [
            {"prompt_ids": row.prompt, "chosen_ids": row.answer, "rejected_ids": row.rejected or []}
            for row in rows
        ]

    @override
    def _pairs(self, inputs: Mapping[str, Tensor]) -> int:
        return len(inputs["input_ids"]) // 2
