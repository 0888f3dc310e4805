# SPDX-License-Identifier: Apache-2.0
"""Runs what leaves no result of a stage: the containers around a stage or an endpoint, and cleanup."""

from finetune_trainer.contract.configs import AnswersConfig, CleanupConfig, PromptsConfig
from finetune_trainer.contract.serving import (
    DownloadConfig,
    FetchConfig,
    FillConfig,
    MergeConfig,
    ServeConfig,
)
from finetune_trainer.store import open_store
from finetune_trainer.store.processes import cleanup

ConfigWithoutResult = (
    CleanupConfig
    | DownloadConfig
    | FetchConfig
    | FillConfig
    | MergeConfig
    | ServeConfig
    | PromptsConfig
    | AnswersConfig
)
"""Config of a process that leaves no result of a stage."""


def run_without_result(config: ConfigWithoutResult) -> None:
    """Run the process. Each imports its libraries only then. Raises StageFailure."""
    match config:
        case CleanupConfig():
            cleanup(config, open_store(config.store))
        case FetchConfig():
            from finetune_trainer.serve import fetch

            fetch.run(config)
        case DownloadConfig():
            from finetune_trainer.preflight import base_model
            from finetune_trainer.runtime import termination

            termination.write(base_model.run(config).to_json())
        case MergeConfig():
            from finetune_trainer.runtime import termination
            from finetune_trainer.serve import merge

            termination.write(merge.run(config).to_json())
        case FillConfig():
            from finetune_trainer.serve import fill

            fill.fill_cache(config)
        case ServeConfig():
            from finetune_trainer.serve import app

            app.serve(config)
        case PromptsConfig():
            from finetune_trainer.evaluate.answering import prompts

            prompts.run(config)
        case AnswersConfig():
            from finetune_trainer.evaluate.answering import engineanswers

            engineanswers.run(config)
