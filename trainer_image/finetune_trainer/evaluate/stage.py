"""The evaluate stage: computes each metric of each subject on the held-out split."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase, set_seed

from finetune_trainer.contract.configs.evaluate import EvaluateConfig
from finetune_trainer.contract.metrics import METRICS, Metric
from finetune_trainer.contract.outcomes import FailureReason
from finetune_trainer.contract.references import ArtifactRef
from finetune_trainer.contract.results import EvaluateResult
from finetune_trainer.contract.vocabulary import FULL_MODEL, Subject
from finetune_trainer.evaluate.checks.memorization import memorization_findings
from finetune_trainer.evaluate.checks.probecheck import ProbeCheck
from finetune_trainer.evaluate.estimates import Estimates, Groups
from finetune_trainer.evaluate.evidence import evidence_for, scores_of
from finetune_trainer.evaluate.examples import Example, encode_examples
from finetune_trainer.evaluate.measure import Measure
from finetune_trainer.evaluate.measured import MeasuredModel
from finetune_trainer.evaluate.measurement import MEMORY_ADVICE, RowMeasurement
from finetune_trainer.evaluate.metrics.registry import measures_of
from finetune_trainer.evaluate.predictions import PredictionLog
from finetune_trainer.evaluate.report import MeasuredEvaluation, write_evaluation_report
from finetune_trainer.model.bundle import own_chat_template
from finetune_trainer.model.device import limit_threads
from finetune_trainer.model.load import load_adapter
from finetune_trainer.model.outofmemory import OutOfMemory, catch_out_of_memory, release_memory
from finetune_trainer.model.placement import load_placed, visible_devices
from finetune_trainer.rows import SPLIT_FILES, load_rows
from finetune_trainer.runtime.failure import StageFailure
from finetune_trainer.scoring.scopesource import ScopeSource
from finetune_trainer.stage.context import StageContext
from finetune_trainer.stage.meter import StageMeter
from finetune_trainer.stage.stepwatchdog import StepWatchdog
from finetune_trainer.tokens.chattemplate import load_tokenizer

logger = logging.getLogger(__name__)


def run(config: EvaluateConfig, context: StageContext) -> EvaluateResult:
    """Evaluate each subject, or continue after the rows that an earlier process measured.

    The same config gives the same scores.

    Raises StageFailure (ARTIFACT_NOT_FOUND, ARTIFACT_CORRUPT, BASE_MODEL_INVALID, INVALID_CONFIG,
    INVALID_DATA, LOSS_NOT_FINITE, OUT_OF_MEMORY, STORE_UNAVAILABLE), Preempted.
    """
    store = context.store
    data = store.artifact(ArtifactRef(kind="datasets", digest=config.dataset), verify=True)
    rows = load_rows(data / SPLIT_FILES[config.split])
    if not rows:
        raise StageFailure(
            FailureReason.INVALID_CONFIG,
            f"the dataset has no {config.split} rows to evaluate; raise split.{config.split}",
        )
    checkpoint = store.artifact(ArtifactRef(kind="checkpoints", digest=config.checkpoint), verify=True)
    base = store.artifact(ArtifactRef(kind="models", digest=config.base_model))
    set_seed(config.seed)
    tokenizer = load_tokenizer(base)
    # The model was trained with it. Another release may supply another one to the same base model.
    tokenizer.chat_template = own_chat_template(checkpoint) or tokenizer.chat_template
    source = ScopeSource(data, config.split, tokenizer, config.chat_template_kwargs)
    scope = source.find(config.metrics, config.options)
    measures = measures_of(config.metrics, scope)
    examples = encode_examples(
        rows,
        tokenizer,
        config.max_sequence_length,
        config.split,
        config.chat_template_kwargs,
        choices=scope.choices,
    )
    _check(examples, measures, config)
    with store.run_folder(config.run, config.stage) as folder:
        log = PredictionLog(folder, config)
        if len(log):
            logger.info("continuing after %d measured rows in %s", len(log), folder.uri)
        progress = _Progress(config, context, len(examples) * len(config.subjects), folder.uri, len(log))
        limit_threads()
        devices = visible_devices()
        measurement = RowMeasurement(config, examples, measures, log, devices, progress.count)
        probe = ProbeCheck(config, store)
        models = _Models(config, base, checkpoint, tokenizer, devices, progress.feed, probe)
        with progress.watchdog, log.saved():
            models.measure(measurement)
        groups = None if config.group_by is None else Groups.of(config.group_by, rows)
        estimates = Estimates(examples, measures, log.of, groups)
        scores = tuple(scores_of(config.subjects, estimates))
        evidence = tuple(evidence_for(config.gates, estimates, config.subjects))
        findings = (*probe.findings, *memorization_findings(config, store, rows, log))
        log.finish()
        evaluation = MeasuredEvaluation(
            config=config,
            rows=rows,
            estimates=estimates,
            scope=scope,
            scores=scores,
            evidence=evidence,
            findings=findings,
            predictions_uri=log.uri,
        )
        page = write_evaluation_report(folder, evaluation.facts())
    return EvaluateResult(
        checkpoint=config.checkpoint,
        split=config.split,
        scores=scores,
        report_uri=page,
        live=None if config.live is None else config.live.digest,
        evidence=evidence,
        findings=findings,
    )


def _check(examples: list[Example], measures: Mapping[Metric, Measure], config: EvaluateConfig) -> None:
    """Raise StageFailure (INVALID_CONFIG) if the rows lack what the metrics need."""
    if not examples:
        raise StageFailure(
            FailureReason.INVALID_CONFIG,
            f"the dataset has no {config.split} rows with the label true, and only those have a correct"
            f" answer to compare with; raise split.{config.split}, or add such rows",
        )
    pairs = next((metric for metric in config.metrics if "pairs" in METRICS[metric].needs), None)
    if pairs is not None and any(example.rejected is None for example in examples):
        raise StageFailure(
            FailureReason.INVALID_CONFIG,
            f"evaluation.metrics: {pairs} needs rows with a chosen and a rejected answer (format Preference);"
            " remove it, also from evaluation.gates",
        )
    for metric in config.metrics:
        if not any(measures[metric].weight(example) for example in examples):
            raise StageFailure(
                FailureReason.INVALID_CONFIG,
                f"evaluation.metrics: {metric} cannot be measured: no {config.split} row has a part of its"
                f" answer within hyperparameters.maxSequenceLength, which is {config.max_sequence_length};"
                " raise it in a new run",
            )


class _Progress:
    """Progress of the stage: for the operator, the log and the watchdog. Unit: rows, of all models."""

    def __init__(
        self, config: EvaluateConfig, context: StageContext, total: int, folder: str, done: int
    ) -> None:
        self._seconds, self._folder = config.step_timeout_seconds, folder
        self._total, self._done = total, done
        self._meter = StageMeter(context, total)
        self._meter.begin(f"measuring {total} rows of all models: {', '.join(config.subjects)}")
        self.watchdog = StepWatchdog(config, done, self._describe_hang)
        if done:
            self._meter.add(done)

    def count(self, rows: int) -> None:
        """Count measured rows. Raises Preempted after a signal."""
        self._done += rows
        self.feed()
        self._meter.add(rows)

    def feed(self) -> None:
        """Record a sign of life."""
        self.watchdog.feed(self._done)

    def _describe_hang(self, done: int) -> str:
        return (
            f"the evaluation hangs after {done} of {self._total} rows of all models: no batch or token"
            f" finished within {self._seconds} seconds. The next pod continues from the rows in"
            f" {self._folder}. If it hangs again, find the cause in the pod's log, which has the stacks of"
            " all threads, and check its GPU and the store. If it is only slow, raise"
            " compute.stepTimeoutSeconds in a new run"
        )


@dataclass(frozen=True)
class _Models:
    """The models of the subjects, of which one is in memory at a time."""

    config: EvaluateConfig
    base: Path
    checkpoint: Path
    tokenizer: PreTrainedTokenizerBase
    devices: Sequence[torch.device]
    on_token: Callable[[], None]
    probe: ProbeCheck

    def measure(self, measurement: RowMeasurement) -> None:
        """Load the model of each subject with missing rows, and measure these."""
        subjects = [
            subject
            for subject in self.config.subjects
            if measurement.missing(subject) or (subject == "Tuned" and self.probe.is_pending)
        ]
        if self.config.checkpoint_type == FULL_MODEL:
            folders: dict[Subject, Path] = {"Tuned": self.checkpoint, "Base": self.base}
            for subject in subjects:
                # No variable keeps a model while the next one loads.
                measurement.measure(subject, self._load(folders[subject], is_tuned=subject == "Tuned"))
                release_memory()
        elif subjects:
            self._measure_adapter(measurement, subjects)

    def _measure_adapter(self, measurement: RowMeasurement, subjects: list[Subject]) -> None:
        model = self._load(self.base, self.checkpoint, is_tuned=True)
        for subject in subjects:
            if subject == "Tuned":
                measurement.measure(subject, model)
            else:
                with model.without_adapter():
                    measurement.measure(subject, model)

    def _load(self, folder: Path, adapter: Path | None = None, *, is_tuned: bool) -> MeasuredModel:
        logger.info("loading the model in %s", folder)
        try:
            with catch_out_of_memory("loading the model", self.devices, 0, by_batch=False):
                base = load_placed(folder, self.devices, quantized=self.config.quantized_base)
                model = base if adapter is None else load_adapter(base, adapter)
        except OutOfMemory as error:
            raise StageFailure(FailureReason.OUT_OF_MEMORY, f"{error}. {MEMORY_ADVICE}") from error
        self.on_token()
        if is_tuned:
            self.probe.run(model.eval(), int(self.tokenizer.pad_token_id))
            self.on_token()
        return MeasuredModel(
            model, self.tokenizer, max_new_tokens=self.config.max_new_tokens, on_token=self.on_token
        )
