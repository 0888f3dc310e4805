# SPDX-License-Identifier: Apache-2.0
"""The evaluate stage: computes each metric of each subject on the held-out split."""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from transformers import set_seed

from finetune_trainer.contract.configs import EvaluateConfig
from finetune_trainer.contract.evaluation import UnmeasuredSubject
from finetune_trainer.contract.metrics import METRICS, Metric
from finetune_trainer.contract.references import ArtifactRef
from finetune_trainer.contract.results import EvaluateResult
from finetune_trainer.contract.vocabulary import FailureReason, Subject, join_names
from finetune_trainer.evaluate.answering.trainer_side import (
    engine_version,
    read_engine_version,
    report_unsupported_engine,
)
from finetune_trainer.evaluate.checks import ProbeCheck, check_finite_answers, check_memorization
from finetune_trainer.evaluate.estimates import TUNED, Estimates, RowValues, compute_evidence, compute_scores
from finetune_trainer.evaluate.examples import Example
from finetune_trainer.evaluate.judge.judging import Judging, max_judged_rows
from finetune_trainer.evaluate.judge.verdicts import JudgedAnswers
from finetune_trainer.evaluate.measure import Measure
from finetune_trainer.evaluate.measurement import RowMeasurement
from finetune_trainer.evaluate.measurement_log import PredictionLog, TaskLog
from finetune_trainer.evaluate.metrics.registry import measures_of
from finetune_trainer.evaluate.report import (
    MeasuredEvaluation,
    read_learning_curve,
    read_prompt,
    write_evaluation_report,
)
from finetune_trainer.evaluate.runner import SubjectModels
from finetune_trainer.evaluate.subjects.opening import (
    EvaluatedSubject,
    SubjectOpener,
    record_optional_failure,
)
from finetune_trainer.evaluate.subjects.prompted import prompt_digest
from finetune_trainer.model.device import limit_threads
from finetune_trainer.model.loading import visible_devices
from finetune_trainer.rows import SPLIT_FILES, load_rows
from finetune_trainer.runtime.termination import Preempted, StageFailure
from finetune_trainer.stage.context import StageContext, StageMeter, StepWatchdog
from finetune_trainer.stage.own_metrics import metric_sources, open_tasks, task_sources
from finetune_trainer.statistics.bootstrap import Groups
from finetune_trainer.store import RunFolder

if TYPE_CHECKING:
    from finetune_trainer.evaluate.task_measurement import TaskMeasurement

logger = logging.getLogger(__name__)


def run(config: EvaluateConfig, context: StageContext) -> EvaluateResult:
    """Evaluate each subject, or continue after the rows that an earlier process measured.

    The same config gives the same scores.

    Raises StageFailure (ARTIFACT_NOT_FOUND, ARTIFACT_CORRUPT, BASE_MODEL_INVALID, INVALID_CONFIG,
    INVALID_DATA, LOSS_NOT_FINITE, OUT_OF_MEMORY, CUSTOM_METRIC_FAILED, STORE_UNAVAILABLE), Preempted.
    """
    store = context.store
    data = store.artifact(ArtifactRef(kind="datasets", digest=config.dataset), verify=True)
    rows = load_rows(data / SPLIT_FILES[config.split])
    if not rows:
        raise StageFailure(
            FailureReason.INVALID_CONFIG,
            f"the dataset has no {config.split} rows to evaluate; raise split.{config.split}",
        )
    sources = metric_sources(config.custom_metrics)
    opened_tasks = open_tasks(config.tasks)
    set_seed(config.seed)
    unmeasured: list[UnmeasuredSubject] = []
    with store.run_folder(config.run, config.stage) as folder:
        opener = SubjectOpener(config, store, data, rows, folder)
        measures = measures_of(config.metrics, opener.scope)
        subjects = _open(config, opener, measures, unmeasured)
        log = PredictionLog(folder, config, read_engine_version(config))
        examples = {subject.name: subject.examples for subject in subjects}
        tasks = TaskLog(config, opened_tasks, folder)
        done = sum(len(log.of(name)) for name in examples) + tasks.done_rows(list(examples))
        if done:
            logger.info("continuing after %d measured rows in %s", done, folder.uri)
        total = (
            sum(map(len, examples.values()))
            + max_judged_rows(config, len(next(iter(examples.values()))))
            + tasks.total_rows(list(examples))
        )
        progress = _Progress(config, context, total, folder.uri, done)
        limit_threads()
        devices = visible_devices()
        measurement = RowMeasurement(config, examples, measures, log, devices, progress.count)
        probe = ProbeCheck(config, store)
        ability = _task_measurement(config, tasks, devices, progress.count)
        models = SubjectModels(config, devices, progress.feed, probe, ability)
        with progress.watchdog:
            with log.saved():
                for subject in subjects:
                    with record_optional_failure(subject.name, unmeasured, config.live):
                        models.measure(subject, measurement)
                judges = Judging(
                    config=config,
                    rows=rows,
                    examples=examples.get(TUNED, ()),
                    log=log,
                    folder=folder,
                    unmeasured=unmeasured,
                    stop=context.stop,
                    feed=progress.feed,
                    count=progress.count,
                ).run()
            progress.begin_figures()
            for each in unmeasured:
                measurement.leave_out(each.subject)
            other_tokenizers = frozenset(
                subject.name for subject in subjects if not opener.has_same_tokens(subject.tokenizer)
            )
            unmeasured.extend(_not_compared(config, other_tokenizers & set(examples)))
            groups = None
            if config.group_by is not None:
                groups = Groups.of(config.group_by, (dict(row.columns) for row in rows))
            judged = JudgedAnswers(judges, groups)
            estimates = Estimates(
                examples, measures, log.of, groups, other_tokenizers, on_figure=progress.beat
            )
            measured = tuple(examples)
            of_tasks = RowValues(tasks.of(measured), remedy="add rows to the files of the task")
            scores = (*compute_scores(measured, estimates), *of_tasks.scores(), *judged.scores())
            evidence = (
                *compute_evidence(config.gates, estimates, measured),
                *compute_evidence(config.gates, of_tasks, measured),
                *judged.evidence(config.gates),
            )
            findings = (
                *(check_finite_answers(log.of(TUNED).values(), config.split) or probe.findings),
                *check_memorization(config, store, rows, log),
                *judged.findings(),
                *report_unsupported_engine(config),
            )
            log.finish()
            prompt = prompt_digest(folder) if "Prompted" in measured else None
            evaluation = MeasuredEvaluation(
                config=config,
                rows=rows,
                estimates=estimates,
                tasks=tasks,
                task_estimates=of_tasks,
                scope=opener.scope,
                scores=scores,
                evidence=evidence,
                findings=findings,
                unmeasured=unmeasured,
                judges=tuple(judged.shown()),
                judged=judged.of_rows(),
                prompt=read_prompt(folder) if "Prompted" in measured else None,
                learning_curve=read_learning_curve(store.run_folder(config.run, "train")),
                log=log,
                scanner=opener.scanner,
            )
            page = _page(folder, evaluation)
    return EvaluateResult(
        checkpoint=config.checkpoint,
        split=config.split,
        scores=scores,
        report_uri=page,
        live=None if config.live is None else config.live.digest,
        evidence=evidence,
        findings=findings,
        unmeasured=tuple(unmeasured),
        prompt=prompt,
        engine=engine_version(config, log.engine),
        custom_metrics=sources,
        tasks=task_sources(config.tasks, opened_tasks),
    )


def _task_measurement(
    config: EvaluateConfig, log: TaskLog, devices: Sequence[torch.device], on_rows: Callable[[int], None]
) -> "TaskMeasurement | None":
    """What does the tasks; None if there are none."""
    if not log.tasks:
        return None
    # It imports the library, which takes a second.
    from finetune_trainer.evaluate.task_measurement import TaskMeasurement

    return TaskMeasurement(log, devices, config.batch_size, on_rows)


def _page(folder: RunFolder, evaluation: MeasuredEvaluation) -> str | None:
    """Write the page and return its URI; None if it cannot be made, because the scores are worth more."""
    try:
        return write_evaluation_report(folder, evaluation.facts())
    except StageFailure:
        raise
    except Exception:
        logger.exception("the evaluation has no page, because of an error in the trainer; please report it")
        return None


def _open(
    config: EvaluateConfig,
    opener: SubjectOpener,
    measures: Mapping[Metric, Measure],
    unmeasured: list[UnmeasuredSubject],
) -> list[EvaluatedSubject]:
    subjects = []
    for name in config.subjects:
        with record_optional_failure(name, unmeasured, config.live):
            subject = opener.open(name)
            _check(subject.examples, measures, config)
            subjects.append(subject)
    return subjects


def _not_compared(config: EvaluateConfig, subjects: Collection[Subject]) -> Iterator[UnmeasuredSubject]:
    """Yield why figures per token of these subjects are left out."""
    metrics = tuple(metric for metric in config.metrics if METRICS[metric].is_per_token)
    for subject in subjects if metrics else ():
        message = (
            f"its base model has another tokenizer, and {join_names(metrics)} per token cannot be compared:"
            " gate on a metric of the answers"
        )
        yield UnmeasuredSubject(subject=subject, message=message)


def _check(examples: Sequence[Example], measures: Mapping[Metric, Measure], config: EvaluateConfig) -> None:
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
        self._stop = context.stop
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

    def begin_figures(self) -> None:
        """Begin what follows when all rows are measured."""
        self._meter.begin("computing scores, intervals and the page")

    def beat(self) -> None:
        """Record a sign of life between two figures. Raises Preempted after a signal."""
        if self._stop.is_set():
            raise Preempted
        self.feed()

    def _describe_hang(self, done: int) -> str:
        return (
            f"the evaluation hangs after {done} of {self._total} rows of all models: no batch, token or"
            f" figure finished within {self._seconds} seconds. The next pod continues from the rows in"
            f" {self._folder}. If it hangs again, find the cause in the pod's log, which has the stacks of"
            " all threads, and check its GPU and the store. If it is only slow, raise"
            " compute.stepTimeoutSeconds in a new run"
        )
