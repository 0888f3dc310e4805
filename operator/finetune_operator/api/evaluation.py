# SPDX-License-Identifier: Apache-2.0
"""Evaluation of trained models, and its gates: the same fields in FineTuneJob and Evaluation."""

from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from finetune_operator.api.cel import is_one_of
from finetune_operator.api.datasetreference import DatasetReference
from finetune_operator.api.meta import CELRule, Model, Name
from finetune_operator.api.metricrules import (
    DESCRIPTION,
    FRACTION_ADVICE,
    LOWER_IS_BETTER,
    OTHER_METRICS,
    PATTERN_METRICS,
    UNBOUNDED_FAMILIES,
    MetricName,
    is_in_family,
)
from finetune_operator.api.ownmetrics import CustomMetricList, JudgeList, TaskList, own_metric_rules
from finetune_operator.api.serving import EngineArgument
from finetune_trainer.contract.evaluation import (
    EvaluationChecksFields,
    GenerationFields,
    MetricOptionsFields,
    PromptedFields,
)
from finetune_trainer.contract.metrics import DEFAULT_METRICS, JUDGE, TASK
from finetune_trainer.contract.vocabulary import SplitName, listed

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
            f" above 0. For {listed(LOWER_IS_BETTER)}, a lower value is a gain."
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
            f"{listed(PATTERN_METRICS)} needs a pattern: add options.pattern, or remove the metric",
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
