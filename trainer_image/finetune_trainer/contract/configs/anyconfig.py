# SPDX-License-Identifier: Apache-2.0
"""Parse a config of any process."""

from typing import Annotated, Final

from pydantic import Field, TypeAdapter

from finetune_trainer.contract.configs.analyze import AnalyzeConfig
from finetune_trainer.contract.configs.answers import AnswersConfig, PromptsConfig
from finetune_trainer.contract.configs.cleanup import CleanupConfig
from finetune_trainer.contract.configs.collect import CollectConfig
from finetune_trainer.contract.configs.download import DownloadConfig
from finetune_trainer.contract.configs.evaluate import EvaluateConfig
from finetune_trainer.contract.configs.merge import MergeConfig
from finetune_trainer.contract.configs.preflight import PreflightConfig
from finetune_trainer.contract.configs.prepare import PrepareConfig
from finetune_trainer.contract.configs.score import ScoreConfig
from finetune_trainer.contract.configs.serve import FetchConfig, FillConfig, ServeConfig
from finetune_trainer.contract.configs.train import TrainConfig

AnyConfig = Annotated[
    PrepareConfig
    | PreflightConfig
    | TrainConfig
    | EvaluateConfig
    | ScoreConfig
    | AnalyzeConfig
    | CollectConfig
    | CleanupConfig
    | PromptsConfig
    | AnswersConfig
    | DownloadConfig
    | MergeConfig
    | FillConfig
    | FetchConfig
    | ServeConfig,
    Field(discriminator="stage"),
]
CONFIG_ADAPTER: Final[TypeAdapter[AnyConfig]] = TypeAdapter(AnyConfig)
