"""Scores and verdicts of an evaluation, in the status of a FineTuneJob and of a Checkpoint."""

from typing import Annotated, Final, Literal

from pydantic import Field

from finetune_operator.api.meta import Message, Model, Name
from finetune_trainer.contract.metrics import Metric
from finetune_trainer.contract.vocabulary import Subject

MAX_SCORES: Final = 16

GateVerdict = Literal["Passed", "Failed", "Undecided"]
Verdict = Literal[GateVerdict, "NoGates"]


class Score(Model):
    """One metric of one subject on the held-out split."""

    metric: Metric
    subject: Subject
    value: float
    rows: int


class GateResult(Model):
    """The verdict on one gate."""

    metric: Metric
    verdict: GateVerdict
    message: Message


class EvaluationStatus(Model):
    """What evaluation found."""

    checkpoint: Name
    split: str = "test"
    scores: Annotated[tuple[Score, ...], Field(max_length=MAX_SCORES)] = ()
    gates: Annotated[tuple[GateResult, ...], Field(max_length=16)] = ()
    verdict: Verdict
    champion: Annotated[
        Name | None, Field(description="The line's champion when the verdict was reached.")
    ] = None
    untested_answers: Annotated[
        int | None,
        Field(
            ge=1,
            description="Distinct completions that were trained and have no row in the split: the scores say"
            " nothing of them. Absent: none, or not known.",
        ),
    ] = None
