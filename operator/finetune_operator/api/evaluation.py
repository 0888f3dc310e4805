"""How a trained model is judged, and the gates that it must pass."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from finetune_operator.api.cel import is_one_of
from finetune_operator.api.meta import Model, Name, Reserved, ReservedValues, Rule
from finetune_operator.api.metricrules import (
    DESCRIPTION,
    FRACTION_ADVICE,
    LOWER_IS_BETTER,
    OTHERS,
)
from finetune_trainer.contract.metrics import DEFAULT_METRICS, Metric
from finetune_trainer.contract.vocabulary import listed


class Gate(Model):
    """A bar that the tuned model must clear."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.min) || has(self.max) || has(self.minGain)",
            "a gate needs a bound: add min, max or minGain, for example min: 0.8",
        ),
        Rule(
            "!has(self.min) || !has(self.max) || self.min <= self.max",
            "no value is at least min and at most max: make min the smaller one, or leave one of them out",
            "min",
        ),
        Rule(
            "has(self.minGain) == has(self.over)",
            "minGain and over belong together: give both, for example minGain: 0.1 and over: Base",
        ),
        Rule(
            f"{is_one_of('self.metric', OTHERS)} || ((!has(self.min) || self.min >= 0.0 && self.min <= 1.0)"
            " && (!has(self.max) || self.max >= 0.0 && self.max <= 1.0)"
            " && (!has(self.minGain) || self.minGain >= -1.0 && self.minGain <= 1.0))",
            FRACTION_ADVICE,
        ),
    )

    metric: Annotated[Metric, Field(description=DESCRIPTION)]
    min: Annotated[float | None, Field(description="The tuned model's value must be at least this.")] = None
    max: Annotated[float | None, Field(description="The tuned model's value must be at most this.")] = None
    min_gain: Annotated[
        float | None,
        Field(
            description="The tuned model must be better by at least this much (for"
            f" {listed(LOWER_IS_BETTER)}: lower); 0: by more than 0."
        ),
    ] = None
    over: Annotated[
        Literal["Base", "Prompted", "Live"] | None,
        ReservedValues.of("Prompted", "Live"),
        Field(description="What minGain is measured against."),
    ] = None
    confidence: Annotated[
        float | None, Reserved(), Field(gt=0.5, lt=1, description="Decide by the bound of this interval.")
    ] = None


class EvaluationSpec(Model):
    """How the trained model is judged on the held-out split."""

    profile: Annotated[Name | None, Field(description="ComputeProfile of the evaluate stage.")] = None
    metrics: Annotated[
        tuple[Metric, ...], Field(min_length=1, max_length=8, description="What to measure.")
    ] = DEFAULT_METRICS
    compare: Annotated[
        tuple[Literal["Base", "Prompted", "Live"], ...],
        ReservedValues.of("Prompted", "Live"),
        Field(max_length=3, description="What the tuned model is set beside."),
    ] = ("Base",)
    gates: Annotated[tuple[Gate, ...], Field(max_length=16, description="All must pass.")] = ()
