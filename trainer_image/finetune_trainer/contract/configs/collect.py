# SPDX-License-Identifier: Apache-2.0
"""The config of a process that reads the result of a stage."""

from typing import Literal

from finetune_trainer.contract.configs.stage import StageConfig
from finetune_trainer.contract.results import StageResult
from finetune_trainer.contract.vocabulary import Stage


class CollectConfig(StageConfig):
    """Read the result of a stage whose pod no longer exists."""

    stage: Literal["collect"] = "collect"
    of: Stage
    probe: bool = False
    """First write a small file into the stage's folder and remove it, to check that the store is usable."""

    def bind(self, result: StageResult) -> StageResult:
        """Bind the result to this Job. Its config digest remains that of the stage's own config."""
        return result.model_copy(update={"contract": self.contract, "nonce": self.nonce})
