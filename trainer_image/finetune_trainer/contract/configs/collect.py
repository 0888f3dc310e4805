"""The config of a process that reads the result of a stage."""

from typing import Annotated, Literal

from pydantic import Field

from finetune_trainer.contract.configs.stage import StageConfig
from finetune_trainer.contract.results import StageResult
from finetune_trainer.contract.vocabulary import Stage


class CollectConfig(StageConfig):
    """Read the result of a stage whose pod is gone."""

    stage: Literal["collect"] = "collect"
    of: Stage
    probe: Annotated[bool, Field(json_schema_extra={"since": 2})] = False
    """Write a small file into the stage's folder and remove it first: whether the store can be used."""

    def bind(self, result: StageResult) -> StageResult:
        """The result for the reader of this Job; the config that it belongs to is the stage's own."""
        return result.model_copy(update={"contract": self.contract, "nonce": self.nonce})
