# SPDX-License-Identifier: Apache-2.0
"""What the Jobs of an Evaluation need before they start: a profile, a trainer image and the claims."""

from dataclasses import dataclass

from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.api.evaluation_resource import Evaluation
from finetune_operator.manifests.trainer_config import TrainerImage, trainer_of
from finetune_operator.manifests.weights import WeightsReference
from finetune_operator.reconcile.inputs.secondaries import NOTHING, Needs
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.platform import profiles, queues, storage
from finetune_operator.reconcile.records.finalizer import has_finalizer
from finetune_operator.reconcile.stages.jobstate import is_stage_running
from finetune_operator.reconcile.steps import Blocked
from finetune_operator.stage_table import stages_with
from finetune_operator.status.conditions import is_finished
from finetune_operator.status.reasons import Reason
from finetune_operator.status.reserved_fields import not_implemented


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
    return queues.merged(claims, labels, queues.queue_needs(_queues(evaluation, profile)))


def _queues(evaluation: Evaluation, profile: ComputeProfile | Blocked) -> queues.Queues:
    return queues.queues_of(profile, stages_with("evaluation"), evaluation.spec.compute)


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
        trainer = trainer_of(profile, snapshot.facts.trainer_image)
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
    messages = not_implemented(profile.spec)
    if messages and evaluation.status.resolved.profile is None:
        return Blocked(
            Reason.PROFILE_INVALID,
            f"ComputeProfile {profile.name} cannot be used. {'; '.join(messages)}",
            requeue_after=None,
        )
    too_many = profiles.check_devices(profile, evaluation.spec.compute.devices, "spec.compute.devices")
    refused = too_many or queues.check_choice(profile, evaluation.spec.compute)
    return refused or profiles.check_engine_arguments(evaluation.spec, profile, "spec.extraEngineArguments")
