"""How a trainer process ends: its result in the store, its termination message, its exit code."""

import logging
from typing import Final, cast, get_args

from finetune_trainer import configuration, signals, termination
from finetune_trainer.cleanup import cleanup
from finetune_trainer.collect import collect
from finetune_trainer.context import StageContext
from finetune_trainer.contract import (
    AnyConfig,
    CleanupConfig,
    CollectConfig,
    EvaluateConfig,
    ExitCode,
    FailureReason,
    FetchConfig,
    PreflightConfig,
    PrepareConfig,
    ServeConfig,
    Stage,
    StageResult,
    TrainConfig,
)
from finetune_trainer.failure import Preempted, StageFailure
from finetune_trainer.report import Reporter
from finetune_trainer.store import Store, open_store

LAST_REPORT_SECONDS: Final = 5.0

StageRunConfig = PrepareConfig | PreflightConfig | TrainConfig | EvaluateConfig

logger = logging.getLogger(__name__)


def run(config: AnyConfig) -> ExitCode:
    """Do what the config says, and leave its result."""
    if isinstance(config, CleanupConfig | FetchConfig | ServeConfig):
        return _run_without_result(config)
    if isinstance(config, CollectConfig):
        return _run_collect(config)
    return _run_stage(config)


def refuse(text: str | None, failure: StageFailure) -> ExitCode:
    """End a process whose config, in `text`, cannot be used."""
    try:
        raw = configuration.decode(text)
    except StageFailure:
        raw = {}
    stage, run_folder = raw.get("stage"), raw.get("run")
    if stage == "collect":
        stage = raw.get("of")
    if stage in get_args(Stage) and isinstance(run_folder, str):
        return _fail(failed(cast("Stage", stage), run_folder, failure), failure)
    return _fail_in_words(failure)


def failed(stage: Stage, run: str, failure: StageFailure) -> StageResult:
    """The result of a stage that ended with `failure`."""
    return StageResult(
        stage=stage,
        run=run,
        outcome="Failed",
        reason=failure.reason,
        message=failure.message,
        prepare=failure.prepare,
    )


def _run_stage(config: StageRunConfig) -> ExitCode:
    stop = signals.stop_event()
    reporter = Reporter(config.report, config.owner, config.stage)
    store: Store | None = None
    try:
        store = open_store(config.store, stop)
        result = store.read_result(config.run, config.stage)
        if result is not None and result.outcome == "Succeeded":
            logger.info("this run's %s is done already", config.stage)
        else:
            result = _execute(config, StageContext(store=store, reporter=reporter, stop=stop))
            # A source is looked at for years: a look that finds nothing new leaves nothing in the store.
            if result.prepare is None or not result.prepare.unchanged:
                store.write_result(result)
    except Preempted:
        logger.info("stopped by a signal; the next pod of this run goes on from here")
        return ExitCode.PREEMPTED_SAVED
    except StageFailure as failure:
        result = failed(config.stage, config.run, failure)
        if store is not None and failure.reason is not FailureReason.STORE_UNAVAILABLE:
            _keep(store, result)
        return _fail(result, failure)
    except Exception as error:
        logger.exception("%s ended with an error that it does not know", config.stage)
        unforeseen = _unforeseen(error)
        return _fail(failed(config.stage, config.run, unforeseen), unforeseen)
    finally:
        reporter.close(LAST_REPORT_SECONDS)
    termination.write(termination.bounded(result))
    return ExitCode.OK


def _execute(config: StageRunConfig, context: StageContext) -> StageResult:
    """Run a stage; each is imported only when it runs, because most of them import torch."""
    match config:
        case PrepareConfig():
            from finetune_trainer.prepare.stage import run as prepare

            return StageResult(
                stage="prepare", run=config.run, outcome="Succeeded", prepare=prepare(config, context)
            )
        case PreflightConfig():
            from finetune_trainer.preflight.stage import run as preflight

            return StageResult(
                stage="preflight",
                run=config.run,
                outcome="Succeeded",
                preflight=preflight(config, context),
            )
        case TrainConfig():
            from finetune_trainer.train.stage import run as train

            return StageResult(
                stage="train", run=config.run, outcome="Succeeded", train=train(config, context)
            )
        case EvaluateConfig():
            from finetune_trainer.evaluate.stage import run as evaluate

            return StageResult(
                stage="evaluate", run=config.run, outcome="Succeeded", evaluate=evaluate(config, context)
            )


def _run_collect(config: CollectConfig) -> ExitCode:
    signals.end_at_once()
    try:
        result = collect(config, open_store(config.store))
    except StageFailure as failure:
        return _fail(failed(config.of, config.run, failure), failure)
    termination.write(termination.bounded(result))
    return ExitCode.OK


def _run_without_result(config: CleanupConfig | FetchConfig | ServeConfig) -> ExitCode:
    signals.end_at_once()
    try:
        match config:
            case CleanupConfig():
                cleanup(config, open_store(config.store))
            case FetchConfig():
                from finetune_trainer import fetch

                fetch.run(config)
            case ServeConfig():
                from finetune_trainer.serve import app

                app.serve(config)
    except StageFailure as failure:
        return _fail_in_words(failure)
    except Exception as error:
        logger.exception("%s ended with an error that it does not know", config.stage)
        return _fail_in_words(_unforeseen(error))
    return ExitCode.OK


def _fail(result: StageResult, failure: StageFailure) -> ExitCode:
    logger.error("%s: %s", failure.reason, failure.message)
    termination.write(termination.bounded(result))
    return failure.exit_code


def _fail_in_words(failure: StageFailure) -> ExitCode:
    """For processes that have no stage's result: reason and message, as a person reads them."""
    text = f"{failure.reason}: {failure.message}"
    logger.error(text)
    termination.write(text)
    return failure.exit_code


def _keep(store: Store, result: StageResult) -> None:
    try:
        store.write_result(result)
    except StageFailure as failure:
        logger.warning("the result is in the termination message only: %s", failure.message)


def _unforeseen(error: Exception) -> StageFailure:
    advice = (
        "the pod's memory is used up; give the stage more, or make the batch smaller"
        if isinstance(error, MemoryError)
        else "the pod's log has the traceback; please report it"
    )
    return StageFailure(
        FailureReason.INTERNAL, f"{type(error).__name__}: {error}; {advice}", ExitCode.INTERNAL
    )
