"""How a new revision of an InferenceDeployment replaces the old one."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from finetune_operator.api.meta import CELRule, Model, Name

DecisionVerdict = Literal["Promote", "Abort"]
DecisionReason = Annotated[str, Field(max_length=256, description="Who decided, and why.")]


class RolloutDecisionFields(Model):
    """Decision of a person about one revision."""

    revision: Annotated[Name, Field(description="Revision, as in status.revisions.")]
    verdict: Annotated[
        DecisionVerdict,
        Field(
            description="Promote: start a failed or rolled back revision again. Abort: roll back a revision"
            " that is rolling out. A decision about a revision that is Live has no effect: pin another"
            " Checkpoint."
        ),
    ]
    generation: Annotated[
        int,
        Field(
            ge=1,
            description="Number of the decision. Raise it to repeat a decision about the same revision."
            " Default: 1.",
        ),
    ] = 1
    reason: DecisionReason = ""


class RolloutDecision(RolloutDecisionFields):
    """Decision of a person about one revision. The operator obeys it once."""


class Strategy(Model):
    """How a new revision replaces the old one."""

    rules: ClassVar[tuple[CELRule, ...]] = (
        CELRule(
            "!has(self.fallback) || self.type == 'RollingUpdate'",
            "strategy.fallback needs type RollingUpdate: remove it, or change the type",
            "fallback",
        ),
    )

    type: Annotated[
        Literal["RollingUpdate", "Recreate"],
        Field(
            description="Replacement strategy. RollingUpdate: the new revision is ready before the old one"
            " is removed, which needs room for both. Recreate: the pods of the old revision end before those"
            " of the new one start, so requests fail in between; if the new revision fails, the old one"
            " starts again."
        ),
    ] = "RollingUpdate"
    fallback: Annotated[
        Literal["Recreate"] | None,
        Field(
            description="Strategy of a revision that has had no capacity for progressDeadlineSeconds."
            " Default: it waits until there is capacity, and the old revision serves."
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
            description="Whether rollouts pause: no revision starts, and none that is starting gets requests."
            " What serves keeps serving and can be scaled. Default: false."
        ),
    ] = False
    decision: Annotated[
        RolloutDecision | None,
        Field(
            description="Last decision of a person. It can stay in the spec, because the operator obeys it"
            " once and records it in status.decision."
        ),
    ] = None
