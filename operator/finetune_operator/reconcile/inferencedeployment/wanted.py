"""Determine the revision that an endpoint should serve, or why there is none."""

from typing import Final

from finetune_operator.api.computeprofile import ComputeProfile
from finetune_operator.api.devices import CPU
from finetune_operator.api.inferencedeployment import InferenceDeployment
from finetune_operator.manifests.revision import Revision, api_keys_secret, build_revision
from finetune_operator.manifests.trainerimage import trainer_of
from finetune_operator.reconcile.inferencedeployment.targets import Targets
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.platform.profiles import check_devices, check_trainer, resolve_profile
from finetune_operator.reconcile.platform.storage import check_store
from finetune_operator.reconcile.steps import Blocked, Failed, Halt, Working
from finetune_operator.status.reasons import Reason
from finetune_operator.status.reserved import not_implemented

MIN_KEYS_CONTRACT: Final = 2
"""Contract version of the first engine that supports API keys."""
MIN_ARGUMENTS_CONTRACT: Final = 2
"""Contract version of the first engine that passes arguments to the chat template."""


def wanted_revision(endpoint: InferenceDeployment, targets: Targets, snapshot: Snapshot) -> Revision | Halt:
    """The revision for the resolved targets, or how the pass ends without one."""
    problems = not_implemented(endpoint.spec)
    if problems:
        return Failed(Reason.NOT_IMPLEMENTED, "; ".join(problems))
    compute = endpoint.spec.compute
    profile = resolve_profile(compute.profile, "spec.compute.profile", endpoint.namespace, snapshot)
    if isinstance(profile, Blocked):
        return profile
    unusable = _check_profile(profile, compute.devices) or _check_keys(endpoint, profile)
    if unusable is not None:
        return unusable
    lost = [target.problem for target in targets.models if target.is_lost]
    if lost:
        return Blocked(Reason.CHECKPOINT_NOT_FOUND, "; ".join(lost), requeue_after=None)
    if not targets.resolved or targets.base_digest is None:
        first = targets.problems[0]
        message = "; ".join(problem.problem for problem in targets.problems)
        if first.reason == Reason.WAITING_FOR_CHECKPOINT:
            return Working(Reason.WAITING_FOR_CHECKPOINT, message)
        return Blocked(first.reason or Reason.WAITING_FOR_CHECKPOINT, message, requeue_after=None)
    stores = sorted({weights.store for _, weights in targets.resolved})
    if len(stores) > 1:
        return Failed(
            Reason.INVALID_SPEC,
            f"the models of one endpoint must be in one store, but they are in {' and '.join(stores)}:"
            " serve them from separate InferenceDeployments",
        )
    missing = check_store(stores[0], profile, endpoint.namespace, snapshot)
    if missing is not None:
        return missing
    unusable = _check_arguments(targets, profile)
    if unusable is not None:
        return unusable
    return build_revision(endpoint, targets.base_digest, targets.resolved, profile, stores[0])


def _check_profile(profile: ComputeProfile, devices: int) -> Halt | None:
    if profile.spec.engine != "Transformers":
        return Blocked(
            Reason.PROFILE_INVALID,
            f"engine {profile.spec.engine} of ComputeProfile {profile.name} is not implemented in this"
            " release: use a profile with engine: Transformers",
            requeue_after=None,
        )
    trainer = trainer_of(profile, "")
    if devices > 1 and profile.spec.devices.resource != CPU and not trainer.spreads_models:
        return Blocked(
            Reason.TOO_MANY_DEVICES,
            f"spec.compute.devices is {devices}, but the engine of images.trainer of ComputeProfile"
            f" {profile.name}, with trainerContract {trainer.contract}, uses one"
            f" {profile.spec.devices.resource} per replica, and the others would be idle: use an image of"
            " this release, or set devices to 1",
            requeue_after=None,
        )
    return check_trainer(profile) or check_devices(profile, devices, "spec.compute.devices")


def _check_arguments(targets: Targets, profile: ComputeProfile) -> Blocked | None:
    """Refuse an image that would send prompts other than those of training."""
    trainer = trainer_of(profile, "")
    given = next((weights.label for _, weights in targets.resolved if weights.chat_template_kwargs), None)
    if given is None or trainer.contract >= MIN_ARGUMENTS_CONTRACT:
        return None
    return Blocked(
        Reason.PROFILE_INVALID,
        f"Checkpoint {given} was trained with chatTemplateKwargs, which need a trainer image of contract"
        f" {MIN_ARGUMENTS_CONTRACT}, and images.trainer of ComputeProfile {profile.name} has trainerContract"
        f" {trainer.contract}: use an image of this release",
        requeue_after=None,
    )


def _check_keys(endpoint: InferenceDeployment, profile: ComputeProfile) -> Blocked | None:
    """Refuse an image that does not support API keys, because it would serve without them."""
    trainer = trainer_of(profile, endpoint.name)
    if api_keys_secret(endpoint) is None or trainer.contract >= MIN_KEYS_CONTRACT:
        return None
    return Blocked(
        Reason.PROFILE_INVALID,
        f"spec.serving.apiKeysSecretRef needs a trainer image of contract {MIN_KEYS_CONTRACT}, and"
        f" images.trainer of ComputeProfile {profile.name} has trainerContract {trainer.contract}, which"
        " would serve without keys: use an image of this release, or remove the field",
        requeue_after=None,
    )
