# SPDX-License-Identifier: Apache-2.0
"""The trainer's process: runs one config, and ends with a result, a termination message and an exit code.

The config is in the command line or the environment, the result in the store (see `contract`).
"""

import argparse
import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, cast, get_args

from finetune_trainer.contract.base import CONTRACT_VERSIONS
from finetune_trainer.contract.configs import AnyConfig, CollectConfig, EvaluateConfig, TrainConfig
from finetune_trainer.contract.environment import CONFIG_ENV
from finetune_trainer.contract.results import StageResult
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason, ResultStage
from finetune_trainer.distributed.launcher import is_launcher, launch
from finetune_trainer.distributed.process_group import ALONE, Group, GroupFinished, PeerLost, ProcessRank
from finetune_trainer.entrypoint.dispatch import (
    ConfigWithoutResult,
    StageRunConfig,
    StoreFreeConfig,
    run_stage,
    run_without_result,
    run_without_store,
)
from finetune_trainer.runtime import configuration, logs, signals, termination
from finetune_trainer.runtime.progress import Reporter
from finetune_trainer.runtime.termination import Preempted, StageFailure
from finetune_trainer.stage.context import StageContext
from finetune_trainer.store import Store, open_store
from finetune_trainer.store.processes import collect

MAX_LAST_REPORT_SECONDS: Final = 5.0
MAX_EXIT_SECONDS: Final = 30.0

logger = logging.getLogger(__name__)


def run_config(config: AnyConfig) -> int:
    """Run the stage of the config and leave its result. Returns an `ExitCode`, or 128 + a signal's number."""
    if isinstance(config, ConfigWithoutResult):
        return _run_without_result(config)
    if isinstance(config, CollectConfig):
        return _run_collect(config)
    if isinstance(config, StoreFreeConfig):
        return _run_without_store(config)
    if isinstance(config, TrainConfig) and (
        config.nodes * config.devices > 1 or config.hyperparameters.processes > 1
    ):
        return _run_together(config)
    return _run_stage(config)


def refuse_config(text: str | None, failure: StageFailure) -> ExitCode:
    """End a process whose config, in `text`, is invalid."""
    try:
        raw = configuration.decode(text)
    except StageFailure:
        raw = {}
    stage, run_folder = raw.get("stage"), raw.get("run")
    if stage == "collect":
        stage = raw.get("of")
    if stage in get_args(ResultStage) and isinstance(run_folder, str):
        # An invalid config is not reliable; every operator reads the oldest version.
        contract = raw.get("contract") if raw.get("contract") in CONTRACT_VERSIONS else min(CONTRACT_VERSIONS)
        nonce = raw.get("nonce") if isinstance(raw.get("nonce"), str) else None
        result = failure_result(cast("ResultStage", stage), run_folder, failure)
        return _fail(result.model_copy(update={"contract": contract, "nonce": nonce}), failure)
    return _fail_without_result(failure)


def failure_result(stage: ResultStage, run: str, failure: StageFailure) -> StageResult:
    """Build the result of a stage that ended with `failure`."""
    return StageResult(
        stage=stage,
        run=run,
        outcome="Failed",
        reason=failure.reason,
        message=failure.message,
        prepare=failure.prepare,
    )


def _run_together(config: TrainConfig) -> int:
    """Train as one of several processes, or launch the processes of this pod if it has several."""
    if is_launcher(config, os.environ):
        return launch(config)
    try:
        process = ProcessRank.of(config, os.environ)
    except StageFailure as failure:
        return _fail(config.bind(failure_result(config.stage, config.run, failure)), failure)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # every process would write the same warnings
    if process.local_rank > 0:
        logging.getLogger().setLevel(logging.WARNING)  # the pod's first process logs the same lines
    code = _run_stage(config, process)
    _end_within(MAX_EXIT_SECONDS, code)
    return code


def _run_stage(config: StageRunConfig, process: ProcessRank | None = None) -> ExitCode:
    """Run a stage. `process` is its rank among several processes, of which only the main one reports."""
    stop = signals.Stop()
    is_main_process = process is None or process.is_main_process
    target = config.report if is_main_process else None
    reporter = Reporter(target, config.owner, config.stage, contract=config.contract)
    store: Store | None = None
    group = ALONE
    try:
        with stop.listening():
            _check_accelerators(config)
            store = open_store(config.store, stop, process=process.local_rank if process else None)
            result = _find_success(store, config)
            if result is not None:
                logger.info("%s of this run is already complete", config.stage)
            else:
                with _session(config, process, store, stop) as group:
                    context = StageContext(store=store, reporter=reporter, stop=stop, group=group)
                    result = config.bind(run_stage(config, context))
                    # Sources are checked for years. A check of an unchanged source writes nothing.
                    if is_main_process and (result.prepare is None or not result.prepare.unchanged):
                        store.write_result(result)
                    group.finish()
    except Preempted:
        logger.info("stopped by a signal; the next pod of this run resumes here")
        return ExitCode.PREEMPTED_SAVED
    except PeerLost as lost:
        logger.warning("%s; this process exits, and training resumes once all processes have restarted", lost)
        return ExitCode.PEER_LOST
    except GroupFinished:
        logger.info("%s of this run is already complete", config.stage)
        return ExitCode.OK
    except StageFailure as failure:
        if not group.claim_failure():
            return _failed_elsewhere(failure)
        result = config.bind(failure_result(config.stage, config.run, failure))
        if store is not None and failure.reason is not FailureReason.STORE_UNAVAILABLE:
            _keep(store, result)
        return _fail(result, failure)
    except Exception as error:
        logger.exception("%s ended with an unexpected error", config.stage)
        unexpected = _unexpected(error)
        if not group.claim_failure():
            return _failed_elsewhere(unexpected)
        return _fail(config.bind(failure_result(config.stage, config.run, unexpected)), unexpected)
    finally:
        reporter.close(MAX_LAST_REPORT_SECONDS)
    if is_main_process:
        _remove_states(store, config)
        termination.write(termination.fit_message(result))
    return ExitCode.OK


def _check_accelerators(config: StageRunConfig) -> None:
    """Raise StageFailure if the pod cannot use what it requests, as `check_accelerators`."""
    if config.accelerators:
        from finetune_trainer.model.device import check_accelerators

        check_accelerators(config.accelerators)


def _remove_states(store: Store, config: StageRunConfig) -> None:
    """Remove the resume states of a trained run. If train is killed before this, evaluate removes them."""
    if not isinstance(config, TrainConfig | EvaluateConfig):
        return
    from finetune_trainer.train.states.resume_states import remove_states

    try:
        with store.run_folder(config.run, "train") as folder:
            remove_states(folder)
    except (StageFailure, Preempted) as error:
        logger.warning("resume states of run %s are left in the store: %s", config.run, error)


def _find_success(store: Store, config: StageRunConfig) -> StageResult | None:
    """Return the stored result of this stage, if it succeeded."""
    result = store.read_result(config.run, config.stage)
    if result is None or result.outcome != "Succeeded" or _compares_otherwise(config, result):
        return None
    return config.bind(result)


def _compares_otherwise(config: StageRunConfig, result: StageResult) -> bool:
    """Whether a result compares with another champion, or has answers of another engine."""
    if not isinstance(config, EvaluateConfig) or result.evaluate is None:
        return False
    live, engine = config.live, config.answer_engine
    has_engine = engine is not None and engine.is_separate
    champion = None if live is None else live.digest
    return (result.evaluate.live, result.evaluate.engine is not None) != (champion, has_engine)


@contextmanager
def _session(
    config: StageRunConfig, process: ProcessRank | None, store: Store, stop: signals.Stop
) -> Iterator[Group]:
    """Yield the group of processes that train together, or of this process only."""
    if process is None or not isinstance(config, TrainConfig):
        yield ALONE
        return
    from finetune_trainer.distributed.distributed_group import session

    with session(config, process, stop, lambda: _find_success(store, config) is not None) as group:
        yield group


def _failed_elsewhere(failure: StageFailure) -> ExitCode:
    logger.warning("%s: %s; another process of this run reports the failure", failure.reason, failure.message)
    return ExitCode.PEER_LOST


def _end_within(seconds: float, code: int) -> None:
    """Exit within `seconds`, even if connections to lost processes keep Python from exiting."""
    timer = threading.Timer(seconds, os._exit, (code,))
    timer.daemon = True
    timer.start()


def _run_collect(config: CollectConfig) -> ExitCode:
    signals.exit_on_signal()
    try:
        result = config.bind(collect(config, open_store(config.store)))
    except StageFailure as failure:
        return _fail(config.bind(failure_result(config.of, config.run, failure)), failure)
    termination.write(termination.fit_message(result))
    return ExitCode.OK


def _run_without_store(config: StoreFreeConfig) -> ExitCode:
    """Run a stage whose pod has no store, so that the termination message is the result."""
    signals.exit_on_signal()
    try:
        result = config.bind(run_without_store(config))
    except Exception as error:  # noqa: BLE001 - it is the failure of the stage
        failure = error if isinstance(error, StageFailure) else _unexpected(error)
        return _fail(config.bind(failure_result(config.stage, config.run, failure)), failure)
    termination.write(termination.fit_message(result))
    return ExitCode.OK


def _run_without_result(config: ConfigWithoutResult) -> ExitCode:
    signals.exit_on_signal()
    try:
        run_without_result(config)
    except StageFailure as failure:
        return _fail_without_result(failure)
    except Exception as error:
        logger.exception("%s ended with an unexpected error", config.stage)
        return _fail_without_result(_unexpected(error))
    return ExitCode.OK


def _fail(result: StageResult, failure: StageFailure) -> ExitCode:
    logger.error("%s: %s", failure.reason, failure.message)
    termination.write(termination.fit_message(result))
    return failure.exit_code


def _fail_without_result(failure: StageFailure) -> ExitCode:
    """End a process that has no stage result: write reason and message as plain text."""
    text = f"{failure.reason}: {failure.message}"
    logger.error(text)
    termination.write(text)
    return failure.exit_code


def _keep(store: Store, result: StageResult) -> None:
    try:
        store.write_result(result)
    except StageFailure as failure:
        logger.warning("only the termination message has the result: %s", failure.message)


def _unexpected(error: Exception) -> StageFailure:
    advice = (
        "the pod is out of memory; give the stage more memory, or reduce the batch size"
        if _is_out_of_memory(error)
        else "the pod's log has the traceback; please report it"
    )
    return StageFailure(
        FailureReason.INTERNAL, f"{type(error).__name__}: {error}; {advice}", ExitCode.INTERNAL
    )


def _is_out_of_memory(error: Exception) -> bool:
    if "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from finetune_trainer.model.device import is_out_of_memory

    return is_out_of_memory(error)


def configure_libraries() -> None:
    """Set what libraries read from the environment when they are imported."""
    # No stage compiles a model, and bitsandbytes takes seconds to load PyTorch's compiler. The Triton kernels
    # that TRL launches on a GPU do not need it.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    # Batches of varying length fragment the memory of a GPU in segments of fixed size.
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # its older name, which a profile may set
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    # PyTorch's OpenMP (libgomp) reads it when it is loaded. Threads that spin while they wait for each other
    # take processor time from the endpoints of the node, and make a step on shared processors five times as
    # long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def run_command_line() -> int:
    """Run the stage of the config in the command line or the environment. Returns the exit code."""
    configure_libraries()
    logs.configure_logs()
    parser = argparse.ArgumentParser(
        prog="finetune-trainer", description="Run one stage of a fine-tuning run."
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help=f"JSON config; default: the value of {CONFIG_ENV}"
    )
    arguments = parser.parse_args()
    try:
        text = _config_text(arguments.config)
    except StageFailure as failure:
        return refuse_config(None, failure)
    try:
        config = configuration.parse(text)
    except StageFailure as failure:
        return refuse_config(text, failure)
    return run_config(config)


def _config_text(path: Path | None) -> str | None:
    if path is None:
        return os.environ.get(CONFIG_ENV)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StageFailure(FailureReason.INVALID_CONFIG, f"--config {path}: {error}") from error
