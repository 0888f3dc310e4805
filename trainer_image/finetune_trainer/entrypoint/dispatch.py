# SPDX-License-Identifier: Apache-2.0
"""Which code runs a config.

A process either runs a stage, or leaves no result of a stage: the containers around a stage or an endpoint,
and cleanup. The code of each is imported only when it runs, because most stages import torch.
"""

from finetune_trainer.contract.base import Digest
from finetune_trainer.contract.configs import (
    AnalyzeConfig,
    AnswersConfig,
    CleanupConfig,
    EvaluateConfig,
    PreflightConfig,
    PrepareConfig,
    PromptsConfig,
    ScoreConfig,
    TrainConfig,
)
from finetune_trainer.contract.references import ArtifactRef
from finetune_trainer.contract.results import StageResult
from finetune_trainer.contract.serving import (
    DownloadConfig,
    FetchConfig,
    FillConfig,
    MergeConfig,
    ServeConfig,
)
from finetune_trainer.contract.vocabulary import FULL_MODEL
from finetune_trainer.stage.context import StageContext
from finetune_trainer.store import open_store
from finetune_trainer.store.mounted import read_ahead
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

            termination.write(base_model.download_to_store(config).to_json())
        case MergeConfig():
            from finetune_trainer.runtime import termination
            from finetune_trainer.serve import merge

            termination.write(merge.run(config).to_json())
        case FillConfig():
            from finetune_trainer.serve import fetch

            fetch.fill_cache(config)
        case ServeConfig():
            from finetune_trainer.serve import app

            app.serve(config)
        case PromptsConfig():
            from finetune_trainer.evaluate.answering import trainer_side

            trainer_side.run(config)
        case AnswersConfig():
            from finetune_trainer.evaluate.answering import engine_side

            engine_side.run(config)


StageRunConfig = PrepareConfig | PreflightConfig | TrainConfig | EvaluateConfig
"""Config of a stage that leaves a result of its own."""
StoreFreeConfig = ScoreConfig | AnalyzeConfig
"""Config of a stage whose pod has no store, so that its termination message is the only result."""


def run_stage(config: StageRunConfig, context: StageContext) -> StageResult:
    """Run the stage of the config. Raises StageFailure, Preempted, PeerLost."""
    base = base_to_load(config)
    if base is not None and not context.group.local_rank:
        # The libraries of these stages take as long to import as gigabytes of weights take to read.
        read_ahead(context.store, ArtifactRef(kind="models", digest=base))
    succeeded = StageResult(stage=config.stage, run=config.run, outcome="Succeeded")
    match config:
        case PrepareConfig():
            from finetune_trainer.prepare.stage import run as prepare

            update: dict[str, object] = {"prepare": prepare(config, context)}
        case PreflightConfig():
            from finetune_trainer.preflight.stage import run as preflight

            update = {"preflight": preflight(config, context)}
        case TrainConfig():
            from finetune_trainer.train.stage import run as train

            update = {"train": train(config, context)}
        case EvaluateConfig():
            from finetune_trainer.evaluate.stage import run as evaluate

            update = {"evaluate": evaluate(config, context)}
    return succeeded.model_copy(update=update)


def run_without_store(config: StoreFreeConfig) -> StageResult:
    """Run the stage of the config. Raises StageFailure."""
    succeeded = StageResult(stage=config.stage, run=config.run, outcome="Succeeded")
    match config:
        case ScoreConfig():
            from finetune_trainer.evaluate.custom.stage import run as score

            update: dict[str, object] = {"score": score(config)}
        case AnalyzeConfig():
            from finetune_trainer.analyze.stage import run as analyze

            update = {"analyze": analyze(config)}
    return succeeded.model_copy(update=update)


def base_to_load(config: StageRunConfig) -> Digest | None:
    """The base model whose weights the stage loads; None if it loads none."""
    match config:
        case TrainConfig():
            return config.base_model
        case EvaluateConfig(live=live):
            adapters = [
                base
                for base, type_ in (
                    (config.base_model, config.checkpoint_type),
                    *([] if live is None else [(live.base_model, live.type)]),
                )
                if type_ != FULL_MODEL
            ]
            is_compared = not {"Base", "Prompted"}.isdisjoint(config.subjects)
            return config.base_model if is_compared or config.base_model in adapters else None
        case _:
            return None
