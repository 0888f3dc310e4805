"""How a new revision of an InferenceDeployment replaces the old one."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from finetune_operator.api.meta import CELRule, Model


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
