"""Stands for kubelet and trainer where there is no node: patches the status of pods as they would.

A stage's pod runs, and then ends with a result that fits its config, unless it is held or told to fail.
A serving pod becomes ready.
"""

import hashlib
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Protocol

from finetune_trainer.contract import (
    CONFIG_ADAPTER,
    CONFIG_ENV,
    CheckpointResult,
    DataStatistics,
    EvaluateConfig,
    EvaluateResult,
    Hyperparameters,
    PreflightConfig,
    PreflightResult,
    PrepareConfig,
    PrepareResult,
    Score,
    SplitRecord,
    StageConfig,
    StageResult,
    TrainConfig,
    TrainResult,
)

Object = dict[str, Any]


class PodApi(Protocol):
    """What the fake kubelet needs of the API server."""

    def list(self, kind: str, namespace: str) -> list[Object]: ...

    def patch(self, kind: str, namespace: str, name: str, body: Object, subresource: str = "") -> Object: ...


def digest(*of: str) -> str:
    """A digest that is the same for the same words."""
    return "sha256:" + hashlib.sha256("\0".join(of).encode()).hexdigest()


def succeeded(config: StageConfig) -> StageResult:
    """A plausible result of the stage; the tuned model is always right and the base model never."""
    common: dict[str, Any] = {"run": config.run, "outcome": "Succeeded"}
    match config:
        case PrepareConfig():
            return StageResult(stage="prepare", prepare=_prepared(config), **common)
        case PreflightConfig():
            return StageResult(stage="preflight", preflight=_preflighted(config), **common)
        case TrainConfig():
            weights = CheckpointResult(
                digest=digest("weights", config.run),
                type="Full" if config.method.type == "Full" else "Adapter",
                step=40,
                epoch=2.0,
                best=True,
                final=True,
            )
            return StageResult(stage="train", train=TrainResult(steps=40, checkpoints=(weights,)), **common)
        case EvaluateConfig():
            return StageResult(stage="evaluate", evaluate=_evaluated(config), **common)
        case _:
            raise TypeError(f"{type(config).__name__} has no result")


def _prepared(config: PrepareConfig) -> PrepareResult:
    uri = config.source_uri
    splits = (
        SplitRecord(name="train", rows=200, digest=digest("train", uri)),
        SplitRecord(name="validation", rows=20, digest=digest("validation", uri)),
        SplitRecord(name="test", rows=20, digest=digest("test", uri)),
    )
    return PrepareResult(
        dataset=digest("dataset", uri),
        source=digest("source", uri),
        preparation=digest("preparation"),
        format="PromptCompletion",
        splits=splits,
        statistics=DataStatistics(source_rows=240),
    )


def _preflighted(config: PreflightConfig) -> PreflightResult:
    hyperparameters = Hyperparameters(
        epochs=2,
        learning_rate=2e-4,
        per_device_batch_size=4,
        gradient_accumulation_steps=1,
        max_sequence_length=256,
        seed=0,
        total_steps=40,
        save_every_steps=10,
    )
    return PreflightResult(
        base_model=digest("base", config.base_model_uri),
        hyperparameters=hyperparameters,
        chat_template="model",
        train_rows=200,
        train_tokens=20_000,
    )


def _evaluated(config: EvaluateConfig) -> EvaluateResult:
    values = {"exact_match": {"Tuned": 1.0, "Base": 0.0}, "loss": {"Tuned": 0.1, "Base": 3.0}}
    scores = tuple(
        Score(metric=metric, subject=subject, value=values[metric][subject], rows=20)
        for metric in config.metrics
        for subject in config.subjects
    )
    return EvaluateResult(checkpoint=config.checkpoint, split=config.split, scores=scores)


class FakeKubelet:
    """Looks at the namespace's pods ten times a second until it is closed.

    Attributes:
        held: stages whose pods keep running.
        started: name of each stage whose pod has started, in order.
    """

    def __init__(
        self, api: PodApi, namespace: str, outcome: Callable[[StageConfig], StageResult] = succeeded
    ) -> None:
        self.held: set[str] = set()
        self.started: list[str] = []
        self._api = api
        self._namespace = namespace
        self._outcome = outcome
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="fake kubelet", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop.

        Raises:
            AssertionError: it could not do its work.
        """
        self._stop.set()
        self._thread.join()
        if self._failure is not None:
            raise AssertionError("the fake kubelet failed") from self._failure

    def _run(self) -> None:
        try:
            while not self._stop.wait(0.1):
                for pod in self._api.list("Pod", self._namespace):
                    self._step(pod)
        except BaseException as error:
            self._failure = error
            raise

    def _step(self, pod: Object) -> None:
        phase = pod["status"]["phase"]
        if "deletionTimestamp" in pod["metadata"] or phase in {"Succeeded", "Failed"}:
            return
        container = pod["spec"]["containers"][0]
        variables = {each["name"]: each.get("value", "") for each in container.get("env", ())}
        config = CONFIG_ADAPTER.validate_json(variables[CONFIG_ENV])
        if phase == "Pending":
            self.started.append(config.stage)
            self._patch(pod, {"running": {"startedAt": _now()}}, "Running")
        elif isinstance(config, StageConfig) and config.stage not in self.held:
            self._end(pod, config)

    def _end(self, pod: Object, config: StageConfig) -> None:
        result = self._outcome(config)
        code = 0 if result.outcome == "Succeeded" else 11
        started = pod["status"]["containerStatuses"][0]["state"]["running"]["startedAt"]
        terminated = {
            "exitCode": code,
            "reason": "Completed" if code == 0 else "Error",
            "startedAt": started,
            "finishedAt": _now(),
            "message": result.to_json(),
        }
        self._patch(pod, {"terminated": terminated}, "Failed" if code else "Succeeded")

    def _patch(self, pod: Object, state: Object, phase: str) -> None:
        running = "running" in state
        name = pod["spec"]["containers"][0]["name"]
        status = {
            "phase": phase,
            "startTime": pod["status"].get("startTime") or _now(),
            "conditions": [{"type": "Ready", "status": str(running)}],
            "containerStatuses": [
                {
                    "name": name,
                    "image": pod["spec"]["containers"][0]["image"],
                    "imageID": "",
                    "restartCount": 0,
                    "ready": running,
                    "state": state,
                }
            ],
        }
        self._api.patch("Pod", self._namespace, pod["metadata"]["name"], {"status": status}, "status")


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
