# SPDX-License-Identifier: Apache-2.0
"""One pass over an Evaluation: its new status and its draft."""

import json
from functools import cached_property
from typing import Final

from finetune_operator.api.evaluation_resource import Evaluation, EvaluationDisplay, EvaluationResourceStatus
from finetune_operator.manifests.labels import short_hash
from finetune_operator.plan import Plan
from finetune_operator.reconcile.evaluation.prerequisites import EvaluationPrerequisites, resolve
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.kstatus import finish_pass
from finetune_operator.reconcile.measuring import EVALUATE, SCORE
from finetune_operator.reconcile.records.evaluationfolders import folder_name
from finetune_operator.reconcile.stages.losses import total_losses
from finetune_operator.reconcile.stages.request import JobNames
from finetune_operator.reconcile.stages.stagepass import StagePass
from finetune_operator.reconcile.steps import Blocked, Halt
from finetune_operator.status.progress import score_text
from finetune_trainer.contract.vocabulary import Stage

STAGE: Final = EVALUATE
STAGES_OF_CHECKPOINT: Final[tuple[Stage, ...]] = (EVALUATE, SCORE)
"""Stages that measure one Checkpoint. Score runs only for custom metrics."""


class Assessment(StagePass[EvaluationResourceStatus]):
    """The steps read and extend it; `plan` turns it into the plan that the executor carries out."""

    def __init__(self, evaluation: Evaluation, snapshot: Snapshot) -> None:
        self.evaluation = evaluation
        super().__init__(evaluation.status, evaluation.metadata.generation, snapshot)

    @cached_property
    def prerequisites(self) -> EvaluationPrerequisites | Blocked:
        """The prerequisites of the Jobs, or what is missing; resolved at most once in a pass."""
        return resolve(self.evaluation, self.snapshot)

    def trial(self, *, begins_anew: bool) -> "Assessment":
        """Another pass from the present status, to see which Job it would create.

        Args:
            begins_anew: whether the image is forgotten, which that Job then decides.
        """
        forgotten = dict.fromkeys(("trainer_image", "trainer_contract") if begins_anew else ())
        resolved = self.status.resolved.model_copy(update=forgotten)
        status = self.status.model_copy(update={"resolved": resolved})
        return Assessment(self.evaluation.model_copy(update={"status": status}), self.snapshot)

    @property
    def current(self) -> str | None:
        """Name of the Checkpoint to measure next; None if all are measured."""
        names = self.evaluation.spec.checkpoints
        return names[self._number] if self._number < len(names) else None

    @property
    def run(self) -> str:
        """Folder of the results of the current Checkpoint in its store."""
        return folder_name(self.evaluation, self._number)

    @property
    def _number(self) -> int:
        """Number of Checkpoints that are measured or whose measurement failed."""
        return number_of_results(self.status)

    def job_names(self, stage: Stage) -> JobNames:
        """Names of the Jobs that measure the current Checkpoint."""
        return JobNames.of(self.evaluation, stage, self.current or "")

    def plan(self, halt: Halt) -> Plan:
        """The plan of a pass that ends with `halt`."""
        total_losses(self)
        done = self.status.evaluations
        self.update(
            display=EvaluationDisplay(
                checkpoints=f"{len(done)}/{len(self.evaluation.spec.checkpoints)}",
                score=score_text(done[-1] if done else None),
            )
        )
        result = finish_pass(self.evaluation, self.status, halt, self.snapshot.now)
        self.draft.events += result.events
        return self.draft.plan(result.manifest, result.requeue_after)


def number_of_results(status: EvaluationResourceStatus) -> int:
    """Number of Checkpoints that are measured or whose measurement failed."""
    return len(status.evaluations) + len(status.unmeasured)


def settings_hash(evaluation: Evaluation) -> str:
    """16 hexadecimal digits of what decides the scores and the verdict, except rows and Checkpoint.

    Without defaults: those of a newer release must not change it.
    """
    spec = evaluation.spec.model_dump(
        mode="json",
        by_alias=True,
        exclude_defaults=True,
        exclude={
            *("checkpoints", "compute", "profile", "deletion_policy", "suspend", "children_ttl_seconds"),
        },
    )
    return short_hash(json.dumps(spec, sort_keys=True), length=16)
