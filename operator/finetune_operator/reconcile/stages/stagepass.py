# SPDX-License-Identifier: Apache-2.0
"""One pass over an object with stages: its new status and its draft."""

from abc import ABC, abstractmethod
from typing import Any, Generic, Literal, TypeVar

from finetune_operator.api.evaluation_resource import EvaluationResourceStatus
from finetune_operator.api.finetune_job_status import FineTuneJobStatus
from finetune_operator.reconcile.draft import Draft
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.stages.request import JobNames
from finetune_operator.status import conditions
from finetune_operator.status.reasons import ConditionType
from finetune_trainer.contract.vocabulary import Stage

S = TypeVar("S", FineTuneJobStatus, EvaluationResourceStatus)


class StagePass(ABC, Generic[S]):
    """A pass over an object whose stages use devices: what its steps read and extend."""

    def __init__(self, status: S, generation: int, snapshot: Snapshot) -> None:
        """`generation` is that of the object, for its conditions."""
        self.status: S = status
        self.snapshot = snapshot
        self.draft = Draft(snapshot)
        self._generation = generation

    @abstractmethod
    def job_names(self, stage: Stage) -> JobNames:
        """Names of the stage's Jobs."""

    def update(self, **fields: Any) -> None:
        """Set fields of the status."""
        self.status = self.status.model_copy(update=fields)

    def resolve(self, **fields: Any) -> None:
        """Set the fields of `status.resolved` that are not set yet; the others keep their values."""
        resolved = self.status.resolved
        open_fields = {name: value for name, value in fields.items() if getattr(resolved, name) is None}
        if open_fields:
            self.update(resolved=resolved.model_copy(update=open_fields))

    def condition(
        self, type_: ConditionType, reason: str, message: str, status: Literal["True", "False"] = "True"
    ) -> None:
        """Set a condition that is not one of the kstatus conditions."""
        self.update(
            conditions=conditions.with_condition(
                self.status.conditions,
                type_,
                status,
                reason,
                message,
                generation=self._generation,
                now=self.snapshot.now,
            )
        )
