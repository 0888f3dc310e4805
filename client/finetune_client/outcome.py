# SPDX-License-Identifier: Apache-2.0
"""Whether a run has reached a goal, will not reach it any more, or is still on its way."""

from dataclasses import dataclass
from enum import StrEnum

from finetune_client.errors import ProgramExit
from finetune_client.tables import printable
from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.api.meta import Condition
from finetune_operator.status.conditions import NOT_PASSED_REASONS, find_condition
from finetune_operator.status.reasons import ConditionType, Reason


class WaitFor(StrEnum):
    """What to wait for."""

    PROMOTED = "promoted"
    """The run's Checkpoint is the champion of its model line."""
    READY = "ready"
    """The run has succeeded, with or without a promotion."""
    TRAINED = "trained"
    """Training has succeeded."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the wait for a goal ended."""

    exit_code: ProgramExit
    message: str


def default_goal(job: FineTuneJob) -> WaitFor:
    """Promotion, unless the run never promotes."""
    return WaitFor.READY if job.spec.promotion.mode == "Never" else WaitFor.PROMOTED


def stalled_code(stalled: Condition) -> ProgramExit:
    """Exit code of what ended with this condition: gates that were not passed are told apart."""
    return ProgramExit.GATES_FAILED if stalled.reason in NOT_PASSED_REASONS else ProgramExit.FAILED


def find_outcome(job: FineTuneJob, goal: WaitFor, checkpoint: Checkpoint | None = None) -> Outcome | None:
    """How the wait for the goal has ended; None while the run can still reach it.

    Args:
        job: the run.
        goal: what to wait for.
        checkpoint: the Checkpoint that the run evaluated, which an approval can promote after the run.
    """
    true = {each.type: each for each in job.status.conditions if each.status == "True"}

    def ended(exit_code: ProgramExit, condition: Condition, how: str) -> Outcome:
        message = printable(condition.message)
        return Outcome(exit_code, f"FineTuneJob {job.name} {how}" + (f": {message}" if message else ""))

    trained, stalled = true.get(ConditionType.TRAINED), true.get(ConditionType.STALLED)
    if goal is WaitFor.TRAINED and trained is not None:
        return ended(ProgramExit.DONE, trained, "is trained")
    if stalled is not None:
        return ended(stalled_code(stalled), stalled, f"ended with {printable(stalled.reason)}")
    ready = true.get(ConditionType.READY)
    if ready is None:
        return None
    if goal is not WaitFor.PROMOTED:
        return ended(ProgramExit.DONE, ready, "succeeded")
    if ready.reason == Reason.PROMOTED:
        return ended(ProgramExit.DONE, ready, "is promoted")
    if checkpoint is not None:
        promoted = find_condition(checkpoint.status.conditions, ConditionType.PROMOTED)
        if promoted is not None and promoted.status == "True":
            return ended(ProgramExit.DONE, promoted, "is promoted")
    approval = checkpoint.spec.approval if checkpoint is not None else None
    if ready.reason == Reason.AWAITING_APPROVAL and (approval is None or approval.state != "Rejected"):
        return None
    return ended(ProgramExit.FAILED, ready, "succeeded and is not promoted")
