# SPDX-License-Identifier: Apache-2.0
"""Builders of the configs of evaluate and score, for runs and for Evaluations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from finetune_operator.api.checkpoint import AdapterRecord
from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.api.evaluation import EvaluationSettings, Gate
from finetune_operator.api.meta import Model
from finetune_operator.manifests.answerengine import AnsweringModel, answer_engine
from finetune_operator.manifests.credentialmounts import secret_mount
from finetune_operator.manifests.evaluatedweights import EvaluatedWeights
from finetune_operator.manifests.ownmetrics import mounted_metrics, mounted_tasks
from finetune_operator.manifests.stageinputs import StageInputs
from finetune_trainer.contract.configs import STEP_TIMEOUT_SECONDS, EvaluateConfig, ScoreConfig
from finetune_trainer.contract.environment import DATASET_MOUNT, PREDICTIONS_MOUNT
from finetune_trainer.contract.evaluation import (
    AnswerEngine,
    EvaluationChecks,
    GateBound,
    GenerationSettings,
    LiveModel,
    MetricOptions,
    PromptedModel,
)
from finetune_trainer.contract.metrics import ANSWERS, JUDGE, METRICS, Metric, is_named_by_user
from finetune_trainer.contract.own_metrics import Judge, Opponent
from finetune_trainer.contract.references import StoreConfig
from finetune_trainer.contract.vocabulary import SplitName, Subject

COMPARED: Final[tuple[Subject, ...]] = ("Base", "Prompted", "Live")


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredData:
    """The rows that an evaluation measures on, and the recorded sources of the user's metrics."""

    dataset: str
    """Digest of the rows' DatasetVersion."""
    split: SplitName = "test"
    group_by: str | None = None
    """Column whose rows are together in one split."""
    training: str | None = None
    """Digest of the rows that the weights were trained on; None if they are not recorded any more."""
    shows_training: bool = False
    """Whether Prompted shows rows of `training`, and not training rows of `dataset`."""
    tasks: Mapping[str, str] = field(default_factory=dict)
    """Digest of the files of each task, by name; empty before they are recorded."""
    custom_metrics: Mapping[str, str] = field(default_factory=dict)
    """Digest of the source of each custom metric, in the same way."""


def evaluate_config(
    inputs: StageInputs,
    evaluation: EvaluationSettings,
    weights: EvaluatedWeights,
    data: MeasuredData,
    *,
    step_timeout_seconds: int | None,
    live: LiveModel | None = None,
    live_adapter: AdapterRecord | None = None,
    profile: ComputeProfile | None = None,
) -> EvaluateConfig:
    """The config of evaluate, which measures one Checkpoint: the requested metrics and those of the gates.

    Args:
        live: the champion to compare with, if the evaluation does and the model line has one.
        live_adapter: properties of its adapter; None if they are not recorded.
        profile: ComputeProfile of the stage, whose engine generates the answers.
    """
    subjects = subjects_of(evaluation)
    return EvaluateConfig(
        **inputs.shared,
        accelerators=inputs.requested_accelerators,
        base_model=weights.base_model,
        dataset=data.dataset,
        training_dataset=data.training,
        shown_dataset=data.training if data.shows_training else None,
        checkpoint=weights.digest,
        checkpoint_type=weights.type,
        probe=weights.probe,
        quantized_base=weights.quantized_base,
        split=data.split,
        chat_template_kwargs=weights.chat_template_kwargs,
        metrics=measured_metrics(evaluation),
        subjects=tuple(subject for subject in subjects if subject != "Live" or live is not None),
        live=live,
        max_sequence_length=weights.hyperparameters.max_sequence_length,
        seed=weights.hyperparameters.seed,
        step_timeout_seconds=step_timeout_seconds or STEP_TIMEOUT_SECONDS,
        generation=GenerationSettings(**_fields(evaluation.generation)),
        options=metric_options(evaluation),
        prompted=PromptedModel(**_fields(evaluation.prompted), seed=weights.hyperparameters.seed),
        gates=tuple(GateBound(**gate.model_dump()) for gate in evaluation.gates),
        slice_by=evaluation.slice_by,
        group_by=data.group_by,
        judges=judges_of(evaluation, has_champion=live is not None),
        checks=EvaluationChecks(**_fields(evaluation.checks)),
        tasks=mounted_tasks(evaluation.tasks, data.tasks),
        custom_metrics=mounted_metrics(evaluation.custom_metrics, data.custom_metrics),
        answer_engine=_answer_engine(profile, evaluation, weights, live, live_adapter),
    )


def score_config(inputs: StageInputs, evaluation: EvaluationSettings, data: MeasuredData) -> ScoreConfig:
    """The config of score, whose pod has no store and reports no progress."""
    return ScoreConfig(
        contract=inputs.contract_version,
        owner=inputs.contract_owner,
        run=inputs.run,
        store=StoreConfig(uri=inputs.store_uri, path=""),
        predictions_path=PREDICTIONS_MOUNT,
        dataset_path=DATASET_MOUNT,
        split=data.split,
        group_by=data.group_by,
        metrics=mounted_metrics(evaluation.custom_metrics, data.custom_metrics),
        gates=tuple(GateBound(**gate.model_dump()) for gate in evaluation.gates),
    )


def _answer_engine(
    profile: ComputeProfile | None,
    evaluation: EvaluationSettings,
    weights: EvaluatedWeights,
    live: LiveModel | None,
    live_adapter: AdapterRecord | None,
) -> AnswerEngine | None:
    if profile is None or not generates_answers(evaluation):
        return None
    models = [AnsweringModel("the evaluated Checkpoint", weights.adapter)]
    if live is not None:
        models.append(AnsweringModel(f"the champion {live.name}", live_adapter))
    return answer_engine(profile, models, evaluation.extra_engine_arguments)


def generates_answers(evaluation: EvaluationSettings) -> bool:
    """Whether a metric reads generated answers."""
    return any(_reads_answers(evaluation, metric) for metric in measured_metrics(evaluation))


def _reads_answers(evaluation: EvaluationSettings, metric: Metric) -> bool:
    options = evaluation.options
    # The most likely label is chosen without generating anything.
    chosen = {"labels"} if options is not None and options.constrained_labels else set()
    needs = METRICS[metric].needs if metric in METRICS else frozenset()
    return "answers" in needs and not needs & chosen


def judges_of(evaluation: EvaluationSettings | None, *, has_champion: bool = True) -> tuple[Judge, ...]:
    """The judges as a pod uses them; without a champion, none compares with it."""
    return tuple(
        Judge(
            **judge.model_dump(exclude={"credentials_secret_ref"}),
            credentials=secret_mount("judge", secret.name if secret else None, number),
        )
        for number, judge in enumerate(evaluation.judges if evaluation else ())
        if judge.against != "Live" or has_champion
        for secret in (judge.credentials_secret_ref,)
    )


def opponents_of(evaluation: EvaluationSettings) -> dict[str, Opponent]:
    """By metric of a judge, whose answers it compares with those of the tuned model."""
    return {f"{JUDGE}/{judge.name}": judge.against for judge in evaluation.judges}


def is_over_live(evaluation: EvaluationSettings, gate: Gate) -> bool:
    """Whether a gate compares with the champion."""
    return "Live" in {gate.over, opponents_of(evaluation).get(gate.metric)}


def measured_metrics(evaluation: EvaluationSettings) -> tuple[str, ...]:
    """The requested metrics and those of the gates: built-in ones in the order of their table.

    Those that users name are computed from the answers, for which one metric is measured.
    """
    wanted = dict.fromkeys((*evaluation.metrics, *(gate.metric for gate in evaluation.gates)))
    measured = [metric for metric in METRICS if metric in wanted]
    if _lacks_answers(evaluation, measured):
        measured.insert(0, next(metric for metric, info in METRICS.items() if info.needs == ANSWERS))
    others = (metric for metric in wanted if metric not in METRICS and not is_named_by_user(metric))
    return (*measured, *others)


def _lacks_answers(evaluation: EvaluationSettings, measured: Sequence[str]) -> bool:
    """Whether something reads answers that no measured metric needs."""
    if evaluation.judges:
        return not any(_reads_answers(evaluation, metric) for metric in measured)
    reads = any("answers" in METRICS[each].needs for each in measured)
    return bool(evaluation.custom_metrics) and not reads


def metric_options(evaluation: EvaluationSettings | None) -> MetricOptions:
    """The options of the metrics."""
    return MetricOptions(**_fields(None if evaluation is None else evaluation.options))


def subjects_of(evaluation: EvaluationSettings) -> tuple[Subject, ...]:
    """The tuned model, and the models to compare it with in the order of the contract."""
    gates = (gate.over for gate in evaluation.gates)
    compared = {*evaluation.compare, *gates, *opponents_of(evaluation).values()}
    return ("Tuned", *(subject for subject in COMPARED if subject in compared))


def _fields(part: Model | None) -> dict[str, Any]:
    """Fields of a part of the spec that the contract also has; none if the part is absent."""
    return {} if part is None else part.model_dump()
