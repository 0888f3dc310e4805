# SPDX-License-Identifier: Apache-2.0
"""Statuses and results of pods that never run, for control planes without nodes."""

import hashlib
from datetime import UTC, datetime
from typing import Any, Final

from finetune_trainer.contract.accelerators import DeviceFacts
from finetune_trainer.contract.analysis import AnalyzeResult
from finetune_trainer.contract.configs import (
    CONFIG_ADAPTER,
    AnalyzeConfig,
    AnyConfig,
    EvaluateConfig,
    PreflightConfig,
    PrepareConfig,
    ScoreConfig,
    StageConfig,
    TrainConfig,
)
from finetune_trainer.contract.environment import CONFIG_ENV
from finetune_trainer.contract.evaluation import AnswerEngine, EngineVersion, GateBound, GateEvidence
from finetune_trainer.contract.hyperparameters import Hyperparameters
from finetune_trainer.contract.method import TYPES
from finetune_trainer.contract.metrics import METRICS, MetricInfo
from finetune_trainer.contract.own_metrics import CustomMetricSource, EvaluationTaskSource
from finetune_trainer.contract.prediction import Prediction
from finetune_trainer.contract.results import (
    CheckpointResult,
    DataStatistics,
    EvaluateResult,
    PreflightResult,
    PrepareResult,
    Score,
    ScoreResult,
    SourceResult,
    SplitRecord,
    StageResult,
    TrainResult,
)
from finetune_trainer.contract.vocabulary import Subject

Object = dict[str, Any]

ENGINE_VERSION: Final = "1.0"
"""Version of each engine that generates answers."""


def digest(*words: str) -> str:
    """A SHA-256 digest of the words."""
    return "sha256:" + hashlib.sha256("\0".join(words).encode()).hexdigest()


def succeeded(config: StageConfig) -> StageResult:
    """A plausible result of the stage; the tuned model gets the best scores and the base model the worst."""
    return config.bind(_result(config, {"run": config.run, "outcome": "Succeeded"}))


def _result(config: StageConfig, common: dict[str, Any]) -> StageResult:
    match config:
        case PrepareConfig():
            return StageResult(stage="prepare", prepare=_prepared(config), **common)
        case PreflightConfig():
            return StageResult(stage="preflight", preflight=_preflighted(config), **common)
        case TrainConfig():
            weights = CheckpointResult(
                digest=digest("weights", config.run),
                type=TYPES[config.method.type].checkpoint_type,
                step=40,
                epoch=2.0,
                best=True,
                final=True,
            )
            trained = TrainResult(
                steps=40,
                tokens=40_000,
                tokens_per_second=5,
                device_memory_bytes=30 << 30,
                checkpoints=(weights,),
            )
            return StageResult(stage="train", train=trained, **common)
        case EvaluateConfig():
            return StageResult(stage="evaluate", evaluate=_evaluated(config), **common)
        case ScoreConfig():
            return StageResult(stage="score", score=_scored(config), **common)
        case AnalyzeConfig():
            return StageResult(stage="analyze", analyze=AnalyzeResult(verdict="Pass"), **common)
        case _:
            raise TypeError(f"{type(config).__name__} has no result")


def _scored(config: ScoreConfig) -> ScoreResult:
    values: dict[Subject, float] = {"Tuned": 0.9, "Base": 0.2}
    return ScoreResult(
        scores=tuple(
            Score(metric=metric.metric, subject=subject, value=value, rows=200)
            for metric in config.metrics
            for subject, value in values.items()
        ),
        sources=tuple(
            CustomMetricSource(name=metric.name, digest=digest("source", metric.name))
            for metric in config.metrics
        ),
    )


def _prepared(config: PrepareConfig) -> PrepareResult:
    uri = " ".join(source.uri for source in config.sources)
    splits = (
        SplitRecord(name="train", rows=200, digest=digest("train", uri)),
        SplitRecord(name="validation", rows=20, digest=digest("validation", uri)),
        SplitRecord(name="test", rows=200, digest=digest("test", uri)),
    )
    return PrepareResult(
        dataset=digest("dataset", uri),
        source=digest("source", uri),
        sources=(
            SourceResult(format="PromptCompletion", train=200, validation=20, test=200),
            *(SourceResult(format="PromptCompletion") for _ in config.sources[1:]),
        ),
        preparation=digest("preparation"),
        format="PromptCompletion",
        splits=splits,
        statistics=DataStatistics(source_rows=420),
    )


def _preflighted(config: PreflightConfig) -> PreflightResult:
    hyperparameters = Hyperparameters(
        epochs=2,
        learning_rate=2e-4,
        batch_size=4,
        max_batch_rows=4,
        max_sequence_length=256,
        seed=0,
        total_steps=40,
        warmup_ratio=0.05,
        scheduler="Linear",
        weight_decay=0,
        save_every_steps=10,
    )
    return PreflightResult(
        base_model=digest("base", config.base_model_uri),
        hyperparameters=hyperparameters,
        lora=config.method.resolved().lora if TYPES[config.method.type].trains_adapter else None,
        chat_template="model",
        train_rows=200,
        train_tokens=20_000,
        prediction=_predicted(config),
        **_sources(config),
    )


def _sources(config: PreflightConfig | EvaluateConfig) -> Object:
    return {
        "custom_metrics": tuple(
            CustomMetricSource(name=metric.name, digest=digest("source", metric.name))
            for metric in config.custom_metrics
        ),
        "tasks": tuple(
            EvaluationTaskSource(name=task.name, digest=digest("task", task.name), rows=200)
            for task in config.tasks
        ),
    }


def _predicted(config: PreflightConfig) -> Prediction:
    """The prediction of a run that takes about two hours on one H100 at an MFU of 0.4."""
    device = config.device or DeviceFacts()
    flops, mfu = 3e18, config.mfu or 0.35
    peak = device.peak_teraflops
    seconds = None if peak is None else flops / (peak * 1e12 * mfu * config.devices * config.nodes)
    return Prediction(
        device_memory_bytes=1 << 30 if device.memory_bytes is None else 31 << 30,
        device_memory_available_bytes=device.memory_bytes,
        host_memory_bytes=2 << 30,
        state_bytes=200 << 20,
        flops=flops,
        seconds_low=seconds,
        seconds_high=seconds,
        mfu=mfu,
        mfu_assumed=config.mfu is None,
        verdict="Unknown" if device.memory_bytes is None else "Fits",
        chosen=("batches of 4 rows, the largest that fit",),
    )


def _evaluated(config: EvaluateConfig) -> EvaluateResult:
    scores = tuple(
        Score(metric=metric, subject=subject, value=_value(METRICS[metric], subject), rows=200)
        for metric in config.metrics
        for subject in config.subjects
    ) + tuple(
        Score(metric=task.metric_name, subject=subject, value=0.5, rows=200)
        for task in config.tasks
        for subject in config.subjects
        if subject != "Prompted"
    )
    gates = enumerate(config.gates)
    evidence = tuple(_evidence(index, gate) for index, gate in gates if gate.metric in METRICS)
    return EvaluateResult(
        checkpoint=config.checkpoint,
        split=config.split,
        scores=scores,
        evidence=evidence,
        live=None if config.live is None else config.live.digest,
        engine=_engine(config.answer_engine),
        **_sources(config),
    )


def _engine(engine: AnswerEngine | None) -> EngineVersion | None:
    if engine is None or not engine.is_separate:
        return None
    return EngineVersion(name=engine.name, version=ENGINE_VERSION)


def _evidence(index: int, gate: GateBound) -> GateEvidence:
    """Evidence for a gate of which the rows leave no doubt."""
    info = METRICS[gate.metric]
    value = _value(info, "Tuned")
    gain = None if gate.over is None else info.gain(value, over=_value(info, gate.over))
    evidence = GateEvidence(gate=index, value=value, gain=gain, rows=200)
    if gate.confidence is None:
        return evidence
    bounds = {"low": value, "high": value, "gain_low": gain, "gain_high": gain}
    return evidence.model_copy(update=bounds)


def _value(metric: MetricInfo, subject: Subject) -> float:
    """Best value of the metric for the tuned model; worst value for the base model, at most 3."""
    worst, best = reversed(metric.range) if metric.lower_is_better else metric.range
    return best if subject == "Tuned" else min(worst, 3)


def config_of(pod: Object) -> AnyConfig:
    """The stage config in the pod's environment."""
    variables = {each["name"]: each.get("value", "") for each in pod["spec"]["containers"][0].get("env", ())}
    return CONFIG_ADAPTER.validate_json(variables[CONFIG_ENV])


def running(pod: Object) -> Object:
    """Status of a pod whose container has just started and is ready."""
    return _status(pod, "Running", {"running": {"startedAt": _now()}})


def ended(pod: Object, result: StageResult | None) -> Object:
    """Status of a running pod whose container has just ended.

    The exit code is that of `result`; without a result it is 0.
    """
    code = 0 if result is None or result.outcome == "Succeeded" else 11
    terminated = {
        "exitCode": code,
        "reason": "Completed" if code == 0 else "Error",
        "startedAt": pod["status"]["containerStatuses"][0]["state"]["running"]["startedAt"],
        "finishedAt": _now(),
        "message": result.to_json() if result is not None else "",
    }
    return _status(pod, "Failed" if code else "Succeeded", {"terminated": terminated})


def _status(pod: Object, phase: str, state: Object) -> Object:
    container = pod["spec"]["containers"][0]
    return {
        "phase": phase,
        "startTime": pod["status"].get("startTime") or _now(),
        "conditions": [{"type": "Ready", "status": str("running" in state)}],
        "containerStatuses": [
            {
                "name": container["name"],
                "image": container["image"],
                "imageID": "",
                "restartCount": 0,
                "ready": "running" in state,
                "state": state,
            }
        ],
    }


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
