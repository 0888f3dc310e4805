# SPDX-License-Identifier: Apache-2.0
"""Evaluation of trained models, as all kinds have it: settings, gates, scores and verdicts.

Settings and gates are the same fields in FineTuneJob and Evaluation. Scores and verdicts are part of the
status of FineTuneJob, Evaluation and Checkpoint.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, ClassVar, Final, Literal, get_args

from pydantic import Field

from finetune_operator.api.evaluation_metrics import (
    DESCRIPTION,
    FRACTION_ADVICE,
    LOWER_IS_BETTER,
    OTHER_METRICS,
    PATTERN_METRICS,
    UNBOUNDED_FAMILIES,
    CustomMetricList,
    JudgeList,
    MetricName,
    ScoredMetric,
    TaskList,
    is_in_family,
    own_metric_rules,
)
from finetune_operator.api.meta import CELRule, Digest, Message, Model, Name, is_one_of, pattern_advice
from finetune_operator.api.references import DatasetReference
from finetune_operator.api.serving import EngineArgument
from finetune_trainer.contract.evaluation import (
    EvaluationChecksFields,
    GenerationFields,
    MetricOptionsFields,
    PromptedFields,
)
from finetune_trainer.contract.metrics import (
    ANSWERS,
    DEFAULT_METRICS,
    JUDGE,
    METRICS,
    TASK,
    is_named_by_user,
)
from finetune_trainer.contract.own_metrics import Opponent
from finetune_trainer.contract.vocabulary import SplitName, Subject, join_names

MAX_GATES: Final = 16


class GenerationSettings(GenerationFields, Model):
    """How answers are generated, named as in the chat API of OpenAI."""


class Prompted(PromptedFields, Model):
    """Prompt of the model Prompted: the base model with instructions and examples."""


class MetricOptions(MetricOptionsFields, Model):
    """What some metrics need."""

    rules: ClassVar[tuple[CELRule, ...]] = (
        CELRule(
            # Without a valid pattern the rule has no value, and the API server reports the pattern's error.
            "!has(self.pattern) || ''.matches(self.pattern) || !''.matches(self.pattern)",
            "pattern is not a regular expression in the syntax of RE2: correct it",
        ),
    )


class EvaluationChecks(EvaluationChecksFields, Model):
    """Checks of the weights, in addition to the metrics."""


class Gate(Model):
    """Bound on a metric that the tuned model must meet. Set min, max, or minGain with over."""

    rules: ClassVar[tuple[CELRule, ...]] = (
        CELRule(
            "has(self.min) || has(self.max) || has(self.minGain)",
            "a gate needs a bound: add min, max or minGain, for example min: 0.8",
        ),
        CELRule(
            "!has(self.min) || !has(self.max) || self.min <= self.max",
            "min is greater than max, so that no value passes the gate: lower min, raise max, or remove one",
            "min",
        ),
        CELRule(
            "has(self.minGain) == has(self.over)",
            "minGain and over belong together: give both, for example minGain: 0.1 and over: Base",
        ),
        CELRule(
            f"{is_one_of('self.metric', OTHER_METRICS)} || {is_in_family('self.metric', UNBOUNDED_FAMILIES)}"
            " || ((!has(self.min) || self.min >= 0.0 && self.min <= 1.0)"
            " && (!has(self.max) || self.max >= 0.0 && self.max <= 1.0)"
            " && (!has(self.minGain) || self.minGain >= -1.0 && self.minGain <= 1.0))",
            FRACTION_ADVICE,
        ),
        CELRule(
            f"!self.metric.startsWith('{JUDGE}/') || !has(self.minGain) && !has(self.over)",
            f"{JUDGE}/NAME compares already: instead of minGain and over, set min, for example min: 0.5, and"
            " judges[].against",
        ),
    )

    metric: Annotated[MetricName, Field(description=f"Metric that the bounds apply to. {DESCRIPTION}")]
    min: Annotated[float | None, Field(description="Lower bound of the tuned model's value, inclusive.")] = (
        None
    )
    max: Annotated[float | None, Field(description="Upper bound of the tuned model's value, inclusive.")] = (
        None
    )
    min_gain: Annotated[
        float | None,
        Field(
            description="Min gain of the tuned model over the model in `over`, inclusive; 0 requires a gain"
            f" above 0. For {join_names(LOWER_IS_BETTER)}, a lower value is a gain."
        ),
    ] = None
    over: Annotated[
        Literal["Base", "Prompted", "Live"] | None,
        Field(
            description="Model that minGain compares with. Base: the base model. Prompted: the base model"
            " with instructions and examples. Live: the champion of the model line."
        ),
    ] = None
    confidence: Annotated[
        float | None,
        Field(
            gt=0.5,
            lt=1,
            description="Confidence level of the one-sided bounds that decide the gate, for example 0.95."
            " Default: the measured value decides.",
        ),
    ] = None


class EvaluatedRows(Model):
    """Rows to measure on."""

    ref: DatasetReference
    split: Annotated[
        SplitName,
        Field(
            description="Split of the DatasetVersion to measure on. A Dataset that is only for evaluation can"
            " have all its rows in train: set split.validation and split.test of the Dataset to 0."
        ),
    ] = "test"


class EvaluationSettings(Model):
    """What is measured, on which rows, what it is compared with, and which bounds it must meet."""

    rules: ClassVar[tuple[CELRule, ...]] = (
        CELRule(
            "has(self.options) && has(self.options.pattern)"
            f" || !self.metrics.exists(metric, {is_one_of('metric', PATTERN_METRICS)})"
            f" && !self.gates.exists(gate, {is_one_of('gate.metric', PATTERN_METRICS)})",
            f"{join_names(PATTERN_METRICS)} needs a pattern: add options.pattern, or remove the metric",
        ),
        CELRule(
            "!has(self.prompted) || self.compare.exists(model, model == 'Prompted')"
            " || self.gates.exists(gate, has(gate.over) && gate.over == 'Prompted')"
            " || has(self.judges) && self.judges.exists(judge, judge.against == 'Prompted')",
            "prompted has no effect, because nothing compares with it: add Prompted to compare, or a gate"
            " with over: Prompted",
            "prompted",
        ),
        *own_metric_rules(),
        CELRule(
            f"self.gates.all(gate, !gate.metric.startsWith('{TASK}/') || !has(gate.over)"
            " || gate.over != 'Prompted')",
            f"a gate on {TASK}/NAME cannot compare with Prompted, because tasks have prompts of their own:"
            " write over: Base",
            "gates",
        ),
    )

    dataset: Annotated[
        EvaluatedRows | None,
        Field(
            description="Rows of another Dataset to measure on. Training rows that repeat one of them are"
            " left out of training. Default: the test split of the rows that the run trains on."
        ),
    ] = None

    metrics: Annotated[
        tuple[MetricName, ...],
        Field(
            min_length=1,
            max_length=20,
            description="Metrics to measure, as described in gates[].metric. Metrics of gates are always"
            " measured.",
        ),
    ] = DEFAULT_METRICS
    compare: Annotated[
        tuple[Literal["Base", "Prompted", "Live"], ...],
        Field(
            max_length=3,
            description="Models to measure in addition to the tuned model, as described in gates[].over.",
        ),
    ] = ("Base",)
    gates: Annotated[
        tuple[Gate, ...],
        Field(
            max_length=MAX_GATES,
            description="Bounds that the tuned model must meet. They decide the promotion of a run, and how"
            " an Evaluation ends.",
        ),
    ] = ()
    generation: Annotated[
        GenerationSettings | None,
        Field(description="How answers are generated. Default: the defaults of its fields."),
    ] = None
    options: Annotated[MetricOptions | None, Field(description="What some metrics need. Default: none.")] = (
        None
    )
    prompted: Annotated[
        Prompted | None,
        Field(description="Prompt of the model Prompted. Default: the defaults of its fields."),
    ] = None
    judges: JudgeList = ()
    tasks: TaskList = ()
    custom_metrics: CustomMetricList = ()
    checks: Annotated[
        EvaluationChecks | None,
        Field(
            description="Checks of the weights. A finding with Veto fails the evaluation. Default: the"
            " defaults of its fields."
        ),
    ] = None
    extra_engine_arguments: Annotated[
        tuple[EngineArgument, ...],
        Field(
            max_length=32,
            description="Arguments of the engine VLLM when it generates the answers, one per item, as --name"
            " or --name=value. The ComputeProfile must allow each name in serving.allowedEngineArguments. Use"
            " those of the endpoints. Default: none.",
        ),
    ] = ()
    slice_by: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=128,
            description="Column by which the evaluation page shows the scores in parts. keepColumns of the"
            " measured rows' Dataset names it. Default: none.",
        ),
    ] = None
    profile: Annotated[
        Name | None,
        Field(
            description="ComputeProfile of the pods that evaluate. Default: of a run, its compute.profile; of"
            " an Evaluation, the cluster's default ComputeProfile."
        ),
    ] = None

    @property
    def opponents(self) -> dict[str, Opponent]:
        """By metric of a judge, whose answers it compares with those of the tuned model."""
        return {f"{JUDGE}/{judge.name}": judge.against for judge in self.judges}

    @property
    def subjects(self) -> tuple[Subject, ...]:
        """The tuned model, and the models to compare it with in the order of the contract."""
        gates = (gate.over for gate in self.gates)
        compared = {"Tuned", *self.compare, *gates, *self.opponents.values()}
        return tuple(subject for subject in get_args(Subject) if subject in compared)

    @property
    def compares_live(self) -> bool:
        """Whether the champion of the model line is measured."""
        return "Live" in self.subjects

    def is_over_live(self, gate: Gate) -> bool:
        """Whether a gate compares with the champion."""
        return "Live" in {gate.over, self.opponents.get(gate.metric)}

    @property
    def measured_metrics(self) -> tuple[str, ...]:
        """The requested metrics and those of the gates: built-in ones in the order of their table.

        Those that users name are computed from the answers, for which one metric is measured.
        """
        wanted = dict.fromkeys((*self.metrics, *(gate.metric for gate in self.gates)))
        measured = [metric for metric in METRICS if metric in wanted]
        if self._lacks_answers(measured):
            measured.insert(0, next(metric for metric, info in METRICS.items() if info.needs == ANSWERS))
        others = (metric for metric in wanted if metric not in METRICS and not is_named_by_user(metric))
        return (*measured, *others)

    def reads_answers(self, metric: str) -> bool:
        """Whether a metric reads generated answers."""
        # The most likely label is chosen without generating anything.
        chosen = {"labels"} if self.options is not None and self.options.constrained_labels else set()
        needs = METRICS[metric].needs if metric in METRICS else frozenset()
        return "answers" in needs and not needs & chosen

    def _lacks_answers(self, measured: Iterable[str]) -> bool:
        """Whether something reads answers that no measured metric needs."""
        if self.judges:
            return not any(map(self.reads_answers, measured))
        reads = any("answers" in METRICS[each].needs for each in measured)
        return bool(self.custom_metrics) and not reads


MAX_SCORES: Final = 80
"""20 metrics of 4 models."""
MAX_FINDINGS: Final = 8

GateVerdict = Literal["Passed", "Failed", "Undecided", "NotApplicable"]
Verdict = Literal["Passed", "Failed", "Undecided", "NoGates"]
SUBJECT_PATTERN: Final = r"^[A-Z][A-Za-z]{0,31}$"
SubjectName = Annotated[
    str,
    Field(
        min_length=1,
        max_length=32,
        pattern=SUBJECT_PATTERN,
        json_schema_extra=pattern_advice(
            SUBJECT_PATTERN, "use the name of a measured model, for example Tuned or Base"
        ),
    ),
]
"""A subject in a status, possibly one that only a newer release knows."""


class Score(Model):
    """Value of one metric for one model."""

    metric: Annotated[ScoredMetric, Field(description="Name of the metric.")]
    subject: Annotated[
        SubjectName,
        Field(
            description="Model that was measured. Tuned: the trained model. Base: its base model. Prompted:"
            " the base model with instructions and examples. Live: the champion of the model line."
        ),
    ]
    value: Annotated[float, Field(description="Value of the metric.")]
    rows: Annotated[int, Field(description="Number of rows that were measured.")]
    low: Annotated[
        float | None, Field(description="Lower end of the two-sided 95 % interval of the value.")
    ] = None
    high: Annotated[
        float | None, Field(description="Upper end of the two-sided 95 % interval of the value.")
    ] = None


class GateResult(Model):
    """Result of one gate. Bounds are one-sided at the confidence of the gate; absent without one."""

    metric: Annotated[ScoredMetric, Field(description="Metric of the gate.")]
    over: Annotated[SubjectName | None, Field(description="Model that the gate compares with.")] = None
    verdict: Annotated[
        GateVerdict,
        Field(
            description="Whether the gate passed. Undecided: a value that the gate needs was not measured, or"
            " the rows do not decide it at its confidence. NotApplicable: it compares with the champion, and"
            " the model line has no other one; it counts as passed."
        ),
    ]
    message: Annotated[Message, Field(description="Measured values and bounds.")]
    value: Annotated[float | None, Field(description="Value of the tuned model.")] = None
    low: Annotated[float | None, Field(description="Lower bound of the value.")] = None
    high: Annotated[float | None, Field(description="Upper bound of the value.")] = None
    gain: Annotated[
        float | None,
        Field(description="Gain over the model in `over`; positive if the tuned model is better."),
    ] = None
    gain_low: Annotated[float | None, Field(description="Lower bound of the gain.")] = None
    gain_high: Annotated[float | None, Field(description="Upper bound of the gain.")] = None
    confidence: Annotated[float | None, Field(description="Confidence level of the bounds.")] = None
    rows: Annotated[int | None, Field(description="Number of rows that were measured.")] = None
    more_rows: Annotated[
        int | None,
        Field(description="Estimated number of additional rows that would decide an undecided gate."),
    ] = None


class CheckFinding(Model):
    """What a check of the trained weights found."""

    check: Annotated[str, Field(max_length=63, description="Name of the check.")]
    veto: Annotated[bool, Field(description="Whether it blocks the promotion.")] = False
    message: Annotated[Message, Field(description="What was found and what to do next.")]


class EvaluationStatus(Model):
    """Results of the evaluation."""

    checkpoint: Annotated[Name, Field(description="Checkpoint that was evaluated.")]
    split: Annotated[str, Field(description="Split that was evaluated.")] = "test"
    scores: Annotated[tuple[Score, ...], Field(max_length=MAX_SCORES, description="Measured values.")] = ()
    gates: Annotated[
        tuple[GateResult, ...], Field(max_length=MAX_GATES, description="Results of the gates.")
    ] = ()
    verdict: Annotated[
        Verdict,
        Field(
            description="Result of all gates together. Passed: all gates passed. Failed: at least one"
            " failed, or a check vetoes the promotion. Undecided: none failed, and at least one is undecided."
            " NoGates: there are no gates."
        ),
    ]
    reason: Annotated[
        str | None,
        Field(
            max_length=64,
            description="Reason of a verdict that does not follow from the gates: Vetoed or"
            " ChampionKeepsChanging.",
        ),
    ] = None
    findings: Annotated[
        tuple[CheckFinding, ...] | None,
        Field(max_length=MAX_FINDINGS, description="What checks of the trained weights found."),
    ] = None
    source: Annotated[
        str | None,
        Field(
            max_length=63,
            description="Who measured it. Run: the run that made the Checkpoint. Otherwise the name of an"
            " Evaluation.",
        ),
    ] = None
    dataset_version: Annotated[Name | None, Field(description="DatasetVersion of the rows.")] = None
    dataset_digest: Annotated[Digest | None, Field(description="Digest of that DatasetVersion.")] = None
    settings_hash: Annotated[
        str | None,
        Field(
            max_length=16,
            description="Hash of the settings of the Evaluation. After a restore it takes over scores with an"
            " equal hash instead of measuring again.",
        ),
    ] = None
    measured_at: Annotated[
        datetime | None,
        Field(description="Time at which an Evaluation recorded the scores."),
    ] = None
    champion: Annotated[
        Name | None, Field(description="Champion of the model line at the time of the verdict.")
    ] = None
    live: Annotated[
        Name | None, Field(description="Checkpoint that was measured as Live. Absent: none was.")
    ] = None
    untested_answers: Annotated[
        int | None,
        Field(
            ge=1,
            description="Number of distinct completions that occur in training rows and in no row of the"
            " split. The scores do not cover them. Absent: none or unknown.",
        ),
    ] = None
    report_uri: Annotated[
        str | None,
        Field(
            max_length=1024,
            description="URI of the HTML page about the evaluation, in the store. The predictions are next"
            " to it.",
        ),
    ] = None
    answer_engine: Annotated[
        str | None,
        Field(
            max_length=128,
            description="Engine that generated the answers, with its version, such as VLLM 0.32.0. Absent:"
            " the engine Transformers of the trainer image, which also computes losses, checks and tasks.",
        ),
    ] = None


class ComparedChampion(Model):
    """Champion that an evaluation compares with."""

    checkpoint: Annotated[
        Name | None, Field(description="The champion. Absent: the model line has none.")
    ] = None
    digest: Annotated[Digest | None, Field(description="Digest of its weights.")] = None


class LiveComparison(ComparedChampion):
    """Champion that the evaluation compares with, while the run evaluates."""

    renewals: Annotated[
        int,
        Field(
            ge=0, description="Number of times that it was measured again because the champion had changed."
        ),
    ] = 0
