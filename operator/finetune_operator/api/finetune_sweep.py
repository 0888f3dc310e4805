# SPDX-License-Identifier: Apache-2.0
"""FineTuneSweep: runs with different hyperparameters, and one more run with the best of them."""

from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from finetune_operator.api.meta import (
    CELRule,
    Conditions,
    Model,
    Name,
    Phase,
    RequiredByRule,
    Resource,
    Status,
    immutable_rules,
    is_none_of,
    is_one_of,
    name_rules,
)
from finetune_operator.api.run_template import RUN_MAKER_NAME_LIMIT, RunTemplate
from finetune_operator.api.training import TYPES_WITHOUT_ADAPTER
from finetune_trainer.contract.vocabulary import join_names

MAX_TRIALS: Final = 64
MAX_PARAMETERS: Final = 6
ADVICE: Final = "a sweep is a record: create a new FineTuneSweep with another name"

LORA: Final = "method.lora."
NUMBERS: Final = (
    "hyperparameters.learningRate",
    "hyperparameters.epochs",
    "hyperparameters.batchSize",
    "hyperparameters.maxSteps",
    "hyperparameters.warmupRatio",
    "hyperparameters.weightDecay",
    "hyperparameters.seed",
    f"{LORA}r",
    f"{LORA}alpha",
    f"{LORA}dropout",
)
"""Fields of a run's spec with a number that a sweep can choose."""
WHOLE_NUMBERS: Final = frozenset(NUMBERS) - {
    "hyperparameters.learningRate",
    "hyperparameters.warmupRatio",
    "hyperparameters.weightDecay",
    f"{LORA}dropout",
}
WORDS: Final = ("hyperparameters.scheduler", f"{LORA}rsLoRA", f"{LORA}dora")
"""Fields with a word, or with true or false."""
CHANGED_BY_CONTINUED_RUN: Final = f"{LORA}dropout"
"""The only setting of an adapter that a run which continues it can change."""


class SearchParameter(Model):
    """Field of the template's spec, and the values to try: min and max, values or choices."""

    rules: ClassVar[tuple[CELRule, ...]] = (
        CELRule(
            is_one_of("self.field", (*NUMBERS, *WORDS)),
            f"a sweep can choose {join_names((*NUMBERS, *WORDS), 'or')}: name one of them",
            "field",
        ),
        CELRule("has(self.min) == has(self.max)", "min and max belong together: give both, or values", "min"),
        CELRule(
            "[has(self.min), has(self.values), has(self.choices)].filter(given, given).size() == 1",
            "a parameter needs exactly one of min with max, values and choices: for example min: 0.00001 and"
            " max: 0.001, or values: [8, 16, 32]",
        ),
        CELRule(
            "!has(self.min) || !has(self.max) || self.min < self.max",
            "min must be below max: exchange them, or give the one value in template.spec",
            "min",
        ),
        CELRule(
            "self.scale != 'Log' || has(self.min) && self.min > 0.0",
            "scale: Log needs min and max above 0: raise min, or remove scale",
            "scale",
        ),
        CELRule(
            f"!has(self.choices) || {is_one_of('self.field', WORDS)}",
            "choices are for fields with words, and this field has numbers: write values",
            "choices",
        ),
        CELRule(
            f"has(self.choices) || {is_none_of('self.field', WORDS)}",
            "this field has words, not numbers: write choices, for example choices: [Linear, Cosine] or"
            " choices: ['true', 'false']",
            "field",
        ),
    )

    field: Annotated[
        str,
        Field(
            max_length=64,
            description="Field of template.spec to choose, such as hyperparameters.learningRate or"
            " method.lora.r. A value of it in the template is replaced.",
        ),
    ]
    min: Annotated[float | None, Field(description="Lowest value, inclusive. Whole numbers are rounded.")] = (
        None
    )
    max: Annotated[float | None, Field(description="Highest value, inclusive.")] = None
    scale: Annotated[
        Literal["Linear", "Log"],
        Field(
            description="How values between min and max are distributed. Linear: evenly. Log: evenly in"
            " their logarithm, for values over several orders of magnitude such as learning rates."
        ),
    ] = "Linear"
    values: Annotated[
        tuple[float, ...] | None, Field(min_length=1, max_length=16, description="Numbers to try.")
    ] = None
    choices: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=32)], ...] | None,
        Field(min_length=1, max_length=16, description="Words to try, also 'true' and 'false'."),
    ] = None

    @property
    def listed(self) -> tuple[float | str, ...]:
        """The values of a list; empty for a range."""
        return self.values or self.choices or ()


class EarlyStopping(Model):
    """Asynchronous successive halving (Li et al., 2020): of the trials that have reached a rung, only the
    best continue."""

    reduction_factor: Annotated[
        int,
        Field(
            ge=2,
            le=8,
            description="A trial continues at a rung if it is among the best 1/reductionFactor of the trials"
            " that have reached the rung so far. Rungs are at 1/reductionFactor of the steps of a trial, at"
            " 1/reductionFactor of that, and so on down to minFraction.",
        ),
    ] = 3
    min_fraction: Annotated[
        float,
        Field(
            gt=0,
            le=0.5,
            description="Share of the steps of a trial before which it is not stopped. A rung is at the first"
            " validation after its share of the steps: set validation.everySteps if there are few epochs.",
        ),
    ] = 0.1

    @property
    def rungs(self) -> tuple[float, ...]:
        """Shares of a trial's steps, in increasing order; empty if minFraction is above the first one."""
        shares, share = [], 1 / self.reduction_factor
        while share >= self.min_fraction:
            shares.append(share)
            share /= self.reduction_factor
        return tuple(reversed(shares))


class _FineTuneSweepFields(Model):
    parameters: Annotated[
        tuple[SearchParameter, ...],
        Field(min_length=1, max_length=MAX_PARAMETERS, description="Fields to choose."),
    ]
    search: Annotated[
        Literal["Grid", "Random"],
        Field(
            description="Which values trials have. Grid: all combinations of values and choices. Random:"
            " points of a Halton sequence, which covers ranges and lists more evenly than random numbers."
        ),
    ] = "Random"
    seed: Annotated[
        int,
        Field(
            ge=0,
            le=2147483647,
            description="Seed of the values of Random. The seed of training is hyperparameters.seed.",
        ),
    ] = 0
    max_trials: Annotated[
        int,
        Field(ge=1, le=MAX_TRIALS, description="Number of trials. A grid has to fit. Mutable."),
    ] = 12
    parallel_trials: Annotated[
        int, Field(ge=1, le=16, description="Max number of trials at the same time. Mutable.")
    ] = 1
    max_failed_trials: Annotated[
        int,
        Field(
            ge=0,
            le=MAX_TRIALS,
            description="Number of failed trials that the sweep tolerates. With one more, it cancels its"
            " trials and fails. Mutable.",
        ),
    ] = 3
    max_device_hours: Annotated[
        float | None,
        Field(
            gt=0,
            description="Device hours of all trials after which no further trial starts. Trials that run are"
            " not interrupted, and the last run is not counted. Default: no limit. Mutable.",
        ),
    ] = None
    early_stopping: Annotated[
        EarlyStopping | None,
        Field(description="Whether trials with a high validation loss are cancelled. Default: none are."),
    ] = None
    template: Annotated[
        RunTemplate,
        RequiredByRule("template has the spec of the runs: write template.spec as the spec of a FineTuneJob"),
        Field(
            description="Template of the runs. Trials have no evaluation and are never promoted. The last run"
            " has the values of the trial with the lowest validation loss, and the evaluation and promotion"
            " of the template. Required."
        ),
    ]
    cancel: Annotated[
        bool,
        Field(
            description="Whether the sweep is cancelled. Its unfinished runs are cancelled too; finished ones"
            " stay. Mutable."
        ),
    ] = False


class FineTuneSweepSpec(_FineTuneSweepFields):
    """Runs to compare. Immutable except the limits and `cancel`."""

    rules: ClassVar[tuple[CELRule, ...]] = (
        *immutable_rules(
            _FineTuneSweepFields,
            mutable=frozenset({"maxTrials", "parallelTrials", "maxFailedTrials", "maxDeviceHours", "cancel"}),
            advice=ADVICE,
        ),
        CELRule(
            "self.parameters.all(one, self.parameters.exists_one(other, other.field == one.field))",
            "parameters names a field twice: name each field once",
            "parameters",
        ),
        CELRule(
            "self.search != 'Grid' || self.parameters.all(each, !has(each.min))",
            "a grid has no ranges: give values in place of min and max, or choose search: Random",
            "search",
        ),
        CELRule(
            f"!has(self.template) || {is_none_of('self.template.spec.method.type', TYPES_WITHOUT_ADAPTER)}"
            f" || self.parameters.all(each, !each.field.startsWith('{LORA}'))",
            f"{LORA.rstrip('.')} has no effect with method.type: {join_names(TYPES_WITHOUT_ADAPTER, 'or')}:"
            " remove the parameter, or choose another type in template.spec",
            "parameters",
        ),
        CELRule(
            "!has(self.template) || has(self.template.spec.dataset.ref)",
            "trials have to train on the same rows: write a Dataset, and name it in"
            " template.spec.dataset.ref",
            "template",
        ),
        CELRule(
            "!has(self.template) || !has(self.template.spec.baseModel.champion)",
            "trials have to start from the same weights, and the champion can change: name a Checkpoint in"
            " template.spec.baseModel.checkpoint, or only the uri",
            "template",
        ),
    )


class Trial(Model):
    """One trial."""

    name: Annotated[Name, Field(description="FineTuneJob of the trial.")]
    values: Annotated[
        dict[str, Annotated[str, Field(max_length=32)]],
        Field(max_length=MAX_PARAMETERS, description="Values of the parameters by field, as text."),
    ] = Field(default={})
    state: Annotated[
        str,
        Field(
            max_length=16,
            description="Running: the run has not ended. Stopped: it was cancelled, because its validation"
            " loss was high at a rung or by a user. Failed: it failed. Done: it has an objective.",
        ),
    ] = "Running"
    objective: Annotated[
        float | None, Field(description="Lowest validation loss of the Checkpoints of a trial that is Done.")
    ] = None
    rungs: Annotated[
        tuple[float, ...],
        Field(max_length=8, description="Validation losses at the rungs that the trial has reached."),
    ] = ()
    device_hours: Annotated[float, Field(description="Device hours of the trial.")] = 0


class BestTrial(Model):
    """The trial with the lowest validation loss."""

    name: Annotated[Name, Field(description="FineTuneJob of the trial.")]
    objective: Annotated[float, Field(description="Its lowest validation loss.")]
    values: Annotated[str, Field(max_length=512, description="Its values, for users.")] = ""


class SweepDisplay(Model):
    """Text for kubectl get. Programs must not read it."""

    trials: Annotated[str | None, Field(description="Number of ended trials, of all, and stopped ones.")] = (
        None
    )


class FineTuneSweepStatus(Status):
    """Observed state of a sweep."""

    phase: Phase = ""
    dataset_version: Annotated[
        Name | None, Field(description="DatasetVersion that all runs train on, chosen once.")
    ] = None
    trials: Annotated[
        tuple[Trial, ...], Field(max_length=MAX_TRIALS, description="Trials in the order of their start.")
    ] = ()
    best: BestTrial | None = None
    run: Annotated[Name | None, Field(description="Run with the best values, after all trials.")] = None
    device_hours: Annotated[float, Field(description="Device hours of all trials.")] = 0
    display: SweepDisplay | None = None
    conditions: Conditions = ()


class FineTuneSweep(Resource):
    """Train with different hyperparameters, stop bad trials early, and train again with the best values."""

    rules: ClassVar[tuple[CELRule, ...]] = name_rules("FineTuneSweep", RUN_MAKER_NAME_LIMIT)
    done_phase: ClassVar[str | None] = "Succeeded"
    keeps_verdict: ClassVar[bool] = True

    kind: str = "FineTuneSweep"
    spec: FineTuneSweepSpec
    status: FineTuneSweepStatus = FineTuneSweepStatus()
