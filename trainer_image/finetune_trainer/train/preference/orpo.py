"""Odds Ratio Preference Optimization."""

from collections.abc import Mapping, Sequence

from torch import Tensor
from trl.experimental.orpo import ORPOConfig, ORPOTrainer
from typing_extensions import override

from finetune_trainer.tokens.answers import EncodedAnswers
from finetune_trainer.tokens.encode import IGNORE_INDEX
from finetune_trainer.train.preference.preferencetrainer import PreferenceTrainer
from finetune_trainer.train.preference.trlrows import TRLRow


class ORPOPreferenceTrainer(PreferenceTrainer, ORPOTrainer):
    """Odds Ratio Preference Optimization (Hong et al., 2024); needs no reference model."""

    method = "ORPO"
    config_class = ORPOConfig

    @override
    @staticmethod
    def columns(rows: Sequence[EncodedAnswers], batch_size: int, seed: int) -> list[TRLRow]:
        return [
            {
                **_sequence("chosen", row.prompt, row.answer),
                **_sequence("rejected", row.prompt, row.rejected or []),
            }
            for row in rows
        ]

    @override
    def _figures(self) -> dict[str, list[float]]:
        figures: dict[str, list[float]] = self._stored_metrics["train"]
        return figures

    @override
    def _pairs(self, inputs: Mapping[str, Tensor]) -> int:
        return len(inputs["chosen_input_ids"])


def _sequence(name: str, prompt: list[int], answer: list[int]) -> TRLRow:
    ids = [*prompt, *answer]
    return {
        f"{name}_input_ids": ids,
        f"{name}_attention_mask": [1] * len(ids),
        f"{name}_labels": [*[IGNORE_INDEX] * len(prompt), *answer],
    }
