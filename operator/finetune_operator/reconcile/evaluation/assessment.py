# SPDX-License-Identifier: Apache-2.0
"""The context of one pass over an Evaluation: what its Jobs need, its new status, and the plan so far."""

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.api.evaluation_resource import Evaluation, EvaluationDisplay, EvaluationResourceStatus
from finetune_operator.api.meta import find_unimplemented
from finetune_operator.manifests.labels import short_hash
from finetune_operator.manifests.trainer_config import TrainerImage, choose_trainer
from finetune_operator.manifests.weights import WeightsReference
from finetune_operator.plan import Plan
from finetune_operator.reconcile.evaluation_stages import EVALUATE
from finetune_operator.reconcile.features.custom_metrics import SCORE
from finetune_operator.reconcile.inputs.related_types import NOTHING, Needs
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.passes import Blocked, PassOutcome, finish_pass
from finetune_operator.reconcile.platform import profiles, queues, storage
from finetune_operator.reconcile.records.content_removal import folder_name, has_finalizer
from finetune_operator.reconcile.stages.accounting import total_losses
from finetune_operator.reconcile.stages.jobs import is_stage_running
from finetune_operator.reconcile.stages.stage_request import JobNames, StagePass
from finetune_operator.stage_table import select_stages
from finetune_operator.status.conditions import is_finished
from finetune_operator.status.progress import score_text
from finetune_operator.status.reasons import Reason
from finetune_trainer.contract.vocabulary import Stage


@dataclass(frozen=True, slots=True)
class EvaluationPrerequisites:
    """What exists; the trainer remains that of the first Job."""

    profile: ComputeProfile
    trainer: TrainerImage


def needs(evaluation: Evaluation, snapshot: Snapshot) -> Needs:
    """Claims and queues to look up: none while a Job runs, because the pass creates nothing then.

    For an Evaluation that is being deleted: the claims with its folders. For each unfinished one: the
    namespace, if its labels decide about the profile.
    """
    if evaluation.metadata.deletion_timestamp is not None:
        stores = evaluation.status.resolved.stores if has_finalizer(evaluation) else None
        return storage.claims_of(*(store.uri for store in stores or ()))
    if is_finished(evaluation):
        return NOTHING
    labels = profiles.label_needs((_profile_name(evaluation),), evaluation.namespace, snapshot)
    if evaluation.spec.suspend or is_stage_running(snapshot):
        return labels
    checkpoints = (snapshot.checkpoints.get(name) for name in evaluation.spec.checkpoints)
    claims = storage.claims_of(*(WeightsReference.of(each).store for each in checkpoints if each is not None))
    profile = _profile(evaluation, snapshot, profiles.named_profile)
    return queues.merge_needs(claims, labels, queues.queue_needs(_queues(evaluation, profile)))


def _queues(evaluation: Evaluation, profile: ComputeProfile | Blocked) -> queues.Queues:
    return queues.queues_of(profile, select_stages("evaluation"), evaluation.spec.compute)


def resolve(evaluation: Evaluation, snapshot: Snapshot) -> EvaluationPrerequisites | Blocked:
    """The prerequisites of the next Job, or what is missing."""
    profile = _profile(evaluation, snapshot)
    if isinstance(profile, Blocked):
        return profile
    blocked = _unusable(evaluation, profile) or queues.check_queues(
        _queues(evaluation, profile), evaluation.namespace, snapshot
    )
    if blocked is not None:
        return blocked
    trainer = _kept_trainer(evaluation)
    if trainer is None:
        trainer = choose_trainer(profile, snapshot.facts.trainer_image)
        blocked = profiles.check_trainer(profile)
    return blocked or EvaluationPrerequisites(profile, trainer)


def _profile_name(evaluation: Evaluation) -> str | None:
    return evaluation.status.resolved.profile or evaluation.spec.profile


def _profile(
    evaluation: Evaluation, snapshot: Snapshot, find: profiles.FindProfile = profiles.resolve_profile
) -> ComputeProfile | Blocked:
    return find(_profile_name(evaluation), "spec.profile", evaluation.namespace, snapshot)


def _kept_trainer(evaluation: Evaluation) -> TrainerImage | None:
    """The trainer of the first Job."""
    image = evaluation.status.resolved.trainer_image
    contract = evaluation.status.resolved.trainer_contract
    return None if image is None or contract is None else TrainerImage(image, contract)


def _unusable(evaluation: Evaluation, profile: ComputeProfile) -> Blocked | None:
    messages = find_unimplemented(profile.spec)
    if messages and evaluation.status.resolved.profile is None:
        return Blocked(
            Reason.PROFILE_INVALID,
            f"ComputeProfile {profile.name} cannot be used. {'; '.join(messages)}",
            requeue_after=None,
        )
    too_many = profiles.check_devices(profile, evaluation.spec.compute.devices, "spec.compute.devices")
    refused = too_many or queues.check_choice(profile, evaluation.spec.compute)
    return refused or profiles.check_engine_arguments(evaluation.spec, profile, "spec.extraEngineArguments")


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

    def plan(self, halt: PassOutcome) -> Plan:
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
