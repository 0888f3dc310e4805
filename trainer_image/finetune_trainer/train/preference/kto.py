"""Kahneman-Tversky Optimization."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from trl.trainer.kto_config import KTOConfig
from trl.trainer.kto_trainer import KTOTrainer
from typing_extensions import override

from finetune_trainer.contract.method import Preference
from finetune_trainer.tokens.answers import EncodedAnswers
from finetune_trainer.train.preference.preferencetrainer import PreferenceTrainer
from finetune_trainer.train.preference.rewards import RewardSums
from finetune_trainer.train.preference.trlrows import TRLRow


class KTOPreferenceTrainer(PreferenceTrainer, KTOTrainer):
    """Kahneman-Tversky Optimization (Ethayarajh et al., 2024)."""

    method = "KTO"
    config_class = KTOConfig

    @override
    @staticmethod
    def columns(rows: Sequence[EncodedAnswers], batch_size: int, seed: int) -> list[TRLRow]:
        """Prompt, answer and label, and an answer to another prompt for KTO's estimate of the KL term.

        That answer is the one of the previous row in the same batch, as in TRL. So TRL reads the rows in the
        same order in every epoch, and they are shuffled here, once.
        """
        order = list(rows)
        random.Random(seed).shuffle(order)  # noqa: S311 - the order of rows is not secret
        return [
            {
                "prompt_ids": row.prompt,
                "completion_ids": row.answer,
                "KL_completion_ids": batch[index - 1].answer,
                "label": row.label,
            }
            for batch in (order[start : start + batch_size] for start in range(0, len(order), batch_size))
            for index, row in enumerate(batch)
        ]

    @override
    @staticmethod
    def method_arguments(preference: Preference) -> dict[str, Any]:
        return {
            **PreferenceTrainer.method_arguments(preference),
            "desirable_weight": preference.desirable_weight or 1,
            "undesirable_weight": preference.undesirable_weight or 1,
        }

    @override
    def _rewards_of(self, figures: Mapping[str, float], inputs: Mapping[str, Tensor]) -> RewardSums:
        desirable = int(inputs["label"].sum())
        undesirable = len(inputs["label"]) - desirable
        return RewardSums(
            chosen=figures["rewards/chosen"] * desirable if desirable else 0,
            chosen_rows=desirable,
            rejected=figures["rewards/rejected"] * undesirable if undesirable else 0,
            rejected_rows=undesirable,
        )
