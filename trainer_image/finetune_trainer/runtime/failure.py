# SPDX-License-Identifier: Apache-2.0
"""Early ends of a stage: a failure that says what to fix, or a preemption after the state is saved."""

from finetune_trainer.contract.results import PrepareResult
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason
from finetune_trainer.runtime.scrubbing import SCRUBBER
from finetune_trainer.runtime.signals import Preempted

__all__ = ["Preempted", "StageFailure"]


class StageFailure(Exception):
    """Ends the stage with a reason for the operator and a message for the user, which has no credential.

    `exit_code` decides whether a retry can help: BAD_CONFIG and BAD_DATA fail the Job at once.
    """

    def __init__(
        self,
        reason: FailureReason,
        message: str,
        exit_code: ExitCode = ExitCode.BAD_CONFIG,
        prepare: PrepareResult | None = None,
    ) -> None:
        self.message = SCRUBBER.scrub(message)
        super().__init__(self.message)
        self.reason = reason
        self.exit_code = exit_code
        self.prepare = prepare
