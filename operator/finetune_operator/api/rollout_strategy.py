# SPDX-License-Identifier: Apache-2.0
"""How a new revision of an InferenceDeployment replaces the old one."""

from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from finetune_operator.api.meta import CELRule, IntOrPercent, Model, Name
from finetune_operator.api.rollout_analysis import RolloutAnalysis, StepAnalysis

MAX_SECONDS: Final = 7 * 86400
"""Limit of a wait in a rollout, in seconds."""
StrategyType = Literal["RollingUpdate", "Recreate", "BlueGreen", "Canary"]
DecisionVerdict = Literal["Promote", "Continue", "Abort"]
DecisionReason = Annotated[str, Field(max_length=256, description="Who decided, and why.")]


class RolloutDecisionFields(Model):
    """Decision of a person about one revision."""

    revision: Annotated[Name, Field(description="Revision, as in status.revisions.")]
    verdict: Annotated[
        DecisionVerdict,
        Field(
            description="Promote: end the preview or the bake of a revision, skip the remaining steps of its"
            " canary, or start a failed or rolled back one again. Continue: end the pause or the inconclusive"
            " analysis that the revision's step waits in now, and take the next step. Abort: roll back a"
            " revision that is rolling out or baking. A decision about a revision that is Live has no"
            " effect: pin another Checkpoint."
        ),
    ]
    generation: Annotated[
        int,
        Field(
            ge=1,
            description="Number of the decision. Raise it to repeat a decision about the same revision.",
        ),
    ] = 1
    reason: DecisionReason = ""


class RolloutDecision(RolloutDecisionFields):
    """Decision of a person about one revision. The operator obeys it once."""


class RollingUpdate(Model):
    """Limits of replicas while the new revision replaces the old one replica by replica."""

    rules: ClassVar[tuple[CELRule, ...]] = (
        CELRule(
            "self.maxSurge != 0 && self.maxSurge != '0%'"
            " || self.maxUnavailable != 0 && self.maxUnavailable != '0%'",
            "rollingUpdate.maxSurge and maxUnavailable cannot both be 0, because no replica could be"
            " replaced: raise one of them",
        ),
    )

    max_surge: Annotated[
        IntOrPercent,
        Field(
            description="Number of replicas that a rollout may have in addition to spec.replicas, or percent"
            " of spec.replicas, rounded up."
        ),
    ] = 0
    max_unavailable: Annotated[
        IntOrPercent,
        Field(
            description="Number of replicas that may be missing during a rollout, or percent of"
            " spec.replicas, rounded down. Each of them frees its devices for one of the new revision."
        ),
    ] = 0


class Pause(Model):
    """Pause of a canary, with the weight of the step before it."""

    seconds: Annotated[
        int | None,
        Field(
            ge=1,
            le=MAX_SECONDS,
            description="Seconds until the next step. Default: the pause has no end, and strategy.decision"
            " ends it.",
        ),
    ] = None


class CanaryStep(Model):
    """Step of a canary. Set one of setWeight, pause and analysis."""

    rules: ClassVar[tuple[CELRule, ...]] = (
        CELRule(
            "[has(self.setWeight), has(self.pause), has(self.analysis)].exists_one(set, set)",
            "a step needs exactly one of setWeight, pause and analysis: make several steps of it",
        ),
    )

    set_weight: Annotated[
        int | None,
        Field(ge=1, le=99, description="Percent of the requests that the new revision gets."),
    ] = None
    pause: Annotated[
        Pause | None,
        Field(
            description="Wait before the next step: {} until a decision, {seconds} for that time."
            " strategy.decision with verdict Continue ends either."
        ),
    ] = None
    analysis: Annotated[
        StepAnalysis | None,
        Field(
            description="Measure the new revision by strategy.analysis. The next step follows when it has"
            " passed; {} has all defaults."
        ),
    ] = None


class Canary(Model):
    """Settings of strategy Canary."""

    rules: ClassVar[tuple[CELRule, ...]] = (
        CELRule(
            "has(self.steps[0].setWeight)",
            "the first of canary.steps must set a weight: begin with setWeight",
            "steps",
        ),
    )

    steps: Annotated[
        tuple[CanaryStep, ...],
        Field(
            min_length=1,
            max_length=20,
            description="Steps of the new revision. After the last one it gets all requests.",
        ),
    ]
    allow_coarse_weights: Annotated[
        bool,
        Field(
            description="Whether a weight below that of one replica is rounded up to one replica. If not, the"
            " rollout is refused, because the new revision would get more requests than its step allows."
        ),
    ] = False


class BlueGreen(Model):
    """Settings of strategy BlueGreen."""

    auto_promotion_seconds: Annotated[
        int | None,
        Field(
            ge=0,
            le=MAX_SECONDS,
            description="Seconds after which a ready revision is promoted without a decision. Default: it"
            " waits for a decision.",
        ),
    ] = None


class Strategy(Model):
    """How a new revision replaces the old one."""

    rules: ClassVar[tuple[CELRule, ...]] = (
        CELRule(
            "!has(self.fallback) || self.type == 'RollingUpdate'",
            "strategy.fallback needs type RollingUpdate: remove it, or change the type",
            "fallback",
        ),
        CELRule(
            "!has(self.rollingUpdate) || self.type == 'RollingUpdate'",
            "strategy.rollingUpdate needs type RollingUpdate: remove it, or change the type",
            "rollingUpdate",
        ),
        CELRule(
            "!has(self.rollingUpdate) || !has(self.fallback)",
            "strategy.rollingUpdate and fallback exclude each other: without room for a second revision set"
            " rollingUpdate.maxUnavailable, and remove fallback",
            "fallback",
        ),
        CELRule(
            "!has(self.blueGreen) || self.type == 'BlueGreen'",
            "strategy.blueGreen needs type BlueGreen: remove it, or change the type",
            "blueGreen",
        ),
        CELRule(
            "has(self.canary) == (self.type == 'Canary')",
            "strategy.canary and type Canary belong together: give both or neither",
            "canary",
        ),
        CELRule(
            "has(self.analysis) || !has(self.canary) || !self.canary.steps.exists(step, has(step.analysis))",
            "a step with analysis needs strategy.analysis, which has the gates: add it, or remove the step",
            "canary",
        ),
        CELRule(
            "!has(self.analysis) || has(self.bakeSeconds)"
            " || has(self.canary) && self.canary.steps.exists(step, has(step.analysis))",
            "strategy.analysis has no effect: add a step with analysis to canary.steps, or bakeSeconds",
            "analysis",
        ),
        CELRule(
            "!has(self.decision) || self.decision.verdict != 'Continue' || self.type == 'Canary'",
            "decision.verdict Continue takes the next step of a canary: use Promote to end a preview or a"
            " bake, or remove the decision",
            "decision",
        ),
    )

    type: Annotated[
        StrategyType,
        Field(
            description="Replacement strategy. RollingUpdate: the new revision is ready before the old one"
            " is removed, which needs room for both, unless rollingUpdate is set. Recreate: the pods of the"
            " old revision end before those of the new one start, so requests fail in between; if the new"
            " revision fails, the old one starts again. BlueGreen: the new revision is ready behind the"
            " Service NAME-preview, and gets the requests by a decision. Canary: the new revision gets the"
            " weights of its steps."
        ),
    ] = "RollingUpdate"
    rolling_update: Annotated[
        RollingUpdate | None,
        Field(
            description="Limits of replicas of a rollout by RollingUpdate. With them both revisions get"
            " requests until the last replica is replaced. Default: all requests move at once, when all"
            " replicas of the new revision are ready."
        ),
    ] = None
    fallback: Annotated[
        Literal["Recreate"] | None,
        Field(
            description="Strategy of a revision that has had no capacity for progressDeadlineSeconds."
            " Default: it waits until there is capacity, and the old revision serves."
        ),
    ] = None
    blue_green: BlueGreen | None = None
    canary: Canary | None = None
    bake_seconds: Annotated[
        int | None,
        Field(
            ge=1,
            le=MAX_SECONDS,
            description="Seconds for which the old revision is kept after the new one has got all requests."
            " If a pod of the new one crashes, or is not ready for progressDeadlineSeconds, the requests"
            " return to the old one. Default: the old revision is removed at once.",
        ),
    ] = None
    analysis: Annotated[
        RolloutAnalysis | None,
        Field(
            description="Gates of a new revision, measured in the steps of a canary with analysis, and in its"
            " bake. If one fails, the requests return to the old revision. Default: no measurement."
        ),
    ] = None
    progress_deadline_seconds: Annotated[
        int,
        Field(
            ge=10,
            le=86400,
            description="Seconds within which a new revision must be ready. A revision that misses the"
            " deadline is rolled back. Time without capacity does not count.",
        ),
    ] = 600
    paused: Annotated[
        bool,
        Field(
            description="Whether rollouts pause: no new revision starts, and a starting one receives no"
            " requests. What serves keeps serving and can be scaled."
        ),
    ] = False
    decision: Annotated[
        RolloutDecision | None,
        Field(
            description="Last decision of a person. It can stay in the spec, because the operator obeys it"
            " once and records it in status.decision."
        ),
    ] = None
