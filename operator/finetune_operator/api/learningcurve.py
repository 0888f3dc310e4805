# SPDX-License-Identifier: Apache-2.0
"""The learning curve of a run: what is requested, and its status."""

from typing import Annotated, ClassVar, Final

from pydantic import Field

from finetune_operator.api.meta import CELRule, Model

MAX_SHARES: Final = 5
"""Max number of shares of a learning curve."""


class RequestedLearningCurve(Model):
    """Trainings on shares of the rows, after the run itself."""

    rules: ClassVar[tuple[CELRule, ...]] = (
        CELRule(
            "self.shares.exists(share, share < 1.0)",
            "learningCurve.shares needs a share below 1, because the run itself is always its last point: add"
            " one, such as 0.5, or remove learningCurve",
            "shares",
        ),
        CELRule(
            "self.shares.all(one, self.shares.exists_one(other, other == one))",
            "learningCurve.shares names a share twice: name each share once",
            "shares",
        ),
    )

    shares: Annotated[
        tuple[Annotated[float, Field(gt=0, le=1)], ...],
        Field(
            min_length=1,
            max_length=MAX_SHARES,
            description="Shares of the training rows, such as [0.25, 0.5], on which the train stage trains"
            " again after the run itself, with the same settings and epochs. The rows of a smaller share are"
            " contained in a larger one. The whole run is always the last point, with or without 1 in the"
            " list. Results are in status.training.learningCurve and on the training page. It takes that"
            " share of the training time for each, needs validation rows, and makes no Checkpoints.",
        ),
    ]

    @property
    def extra_shares(self) -> tuple[float, ...]:
        """Shares to train on in addition to the run itself, the smallest first."""
        return tuple(sorted(share for share in self.shares if share < 1))


class LearningCurvePoint(Model):
    """A training on a share of the rows. Losses are in the unit of status.training."""

    share: Annotated[float, Field(description="Share of the training rows; 1 for the run itself.")]
    rows: Annotated[int, Field(description="Number of training rows.")]
    loss: Annotated[
        float | None, Field(description="Lowest validation loss. Absent: the training failed.")
    ] = None
    loss_low: Annotated[
        float | None,
        Field(
            description="Lower bound of the 95 % interval of the loss. Absent: fewer than 20 validation rows."
        ),
    ] = None
    loss_high: Annotated[float | None, Field(description="Upper bound of the same interval.")] = None
    gain: Annotated[
        float | None,
        Field(
            description="Loss of the previous point minus that of this one, on the same rows; positive if the"
            " loss fell."
        ),
    ] = None
    gain_low: Annotated[
        float | None, Field(description="Lower bound of the 95 % interval of the gain, paired by row.")
    ] = None
    gain_high: Annotated[float | None, Field(description="Upper bound of the same interval.")] = None
    problem: Annotated[
        str | None, Field(max_length=512, description="Why the training failed or was left out.")
    ] = None


class LearningCurve(Model):
    """Losses of trainings on nested shares of the rows, and what they say about more rows."""

    points: Annotated[
        tuple[LearningCurvePoint, ...],
        Field(
            max_length=MAX_SHARES + 1,
            description="Points by increasing share. The last one is the run itself.",
        ),
    ] = ()
    outlook: Annotated[
        str,
        Field(
            max_length=32,
            description="LikelyToHelp: the loss still falls as the rows grow, so more rows of this kind are"
            " likely to help. NotLikelyToHelp: doubling the rows lowers the loss by less than 2 %. Unknown:"
            " the intervals do not decide it.",
        ),
    ] = "Unknown"
    validation_rows: Annotated[
        int, Field(description="Number of validation rows that each loss was measured on.")
    ] = 0
    seconds: Annotated[
        float, Field(description="Seconds of the trainings except the run itself, with repeated work.")
    ] = 0
