# SPDX-License-Identifier: Apache-2.0
"""What the engine of an endpoint does not support, found before a pod starts."""

from typing import Final

from finetune_operator.api.computeprofile import BUILT_IN, ComputeProfile
from finetune_operator.api.devices import CPU
from finetune_operator.api.inferencedeployment import InferenceDeployment
from finetune_operator.manifests.engines.servingconfig import ServingConfig, serving_config
from finetune_operator.manifests.revision import Revision, api_keys_secret
from finetune_operator.manifests.trainerimage import trainer_of
from finetune_operator.reconcile.inferencedeployment.revision.targets import Targets
from finetune_operator.reconcile.inferencedeployment.revision.vllmchecks import check_vllm, only_vllm
from finetune_operator.reconcile.steps import Blocked, Failed, Halt
from finetune_operator.status.reasons import Reason
from finetune_trainer.contract.serving import REASONING_PARSERS
from finetune_trainer.contract.vocabulary import listed

MIN_KEYS_CONTRACT: Final = 2
"""Contract version of the first engine that supports API keys."""
MIN_ARGUMENTS_CONTRACT: Final = 2
"""Contract version of the first engine that passes arguments to the chat template."""
MIN_SETTINGS_CONTRACT: Final = 2
"""Contract version of the first engine that has the settings of `spec.serving`."""
MIN_CACHE_CONTRACT: Final = 2
"""Contract version of the first trainer image that fills and reads a model cache."""
MIN_MERGE_CONTRACT: Final = 2
"""Contract version of the first trainer image that merges adapters."""
MIN_VLLM_CONTRACT: Final = 2
"""Contract version of the first trainer image that prepares the pods of vLLM."""


def check_engine(profile: ComputeProfile, devices: int) -> Blocked | None:
    """Whether the images of the profile can serve on this number of devices."""
    trainer = trainer_of(profile, "")
    if profile.spec.serving.model_cache is not None and trainer.contract < MIN_CACHE_CONTRACT:
        return _blocked(
            f"serving.modelCache needs a trainer image of contract {MIN_CACHE_CONTRACT}, and images.trainer"
            f" of ComputeProfile {profile.name} has trainerContract {trainer.contract}: use an image of this"
            " release, or remove serving.modelCache"
        )
    if profile.spec.serving.engine != BUILT_IN:
        if profile.spec.images.engine is None:
            return _blocked(
                f"ComputeProfile {profile.name} has serving.engine: {profile.spec.serving.engine} but no"
                " images.engine: set it to an image of vLLM, such as vllm/vllm-openai by digest, or use"
                f" a profile with {BUILT_IN}"
            )
        if trainer.contract < MIN_VLLM_CONTRACT:
            return _blocked(
                f"serving.engine: {profile.spec.serving.engine} needs a trainer image of contract"
                f" {MIN_VLLM_CONTRACT}, which prepares its pods, and images.trainer of ComputeProfile"
                f" {profile.name} has trainerContract {trainer.contract}: use an image of this release"
            )
    elif devices > 1 and profile.spec.accelerator.resource != CPU and not trainer.spreads_models:
        return _blocked(
            f"spec.compute.devices is {devices}, but the engine of images.trainer of ComputeProfile"
            f" {profile.name}, with trainerContract {trainer.contract}, uses one"
            f" {profile.spec.accelerator.resource} per replica, and the remaining ones would be idle: use an"
            " image of this release, or set devices to 1",
            Reason.TOO_MANY_DEVICES,
        )
    return None


def check_keys(endpoint: InferenceDeployment, profile: ComputeProfile) -> Blocked | None:
    """Refuse an image that does not support API keys, because it would serve without them."""
    trainer = trainer_of(profile, endpoint.name)
    if api_keys_secret(endpoint) is None or trainer.contract >= MIN_KEYS_CONTRACT:
        return None
    return _blocked(
        f"spec.serving.apiKeysSecretRef needs a trainer image of contract {MIN_KEYS_CONTRACT}, and"
        f" images.trainer of ComputeProfile {profile.name} has trainerContract {trainer.contract}, which"
        " would serve without keys: use an image of this release, or remove the field"
    )


def check_merge(targets: Targets, profile: ComputeProfile) -> Blocked | None:
    """Refuse a trainer image that cannot merge adapters."""
    trainer = trainer_of(profile, "")
    if trainer.contract >= MIN_MERGE_CONTRACT or not any(each.is_merged for _, each in targets.resolved):
        return None
    return _blocked(
        f"spec.models[].merge needs a trainer image of contract {MIN_MERGE_CONTRACT}, and images.trainer of"
        f" ComputeProfile {profile.name} has trainerContract {trainer.contract}: use an image of this release"
    )


def check_arguments(targets: Targets, profile: ComputeProfile) -> Blocked | None:
    """Refuse an image that would send prompts other than those of training."""
    trainer = trainer_of(profile, "")
    given = next((weights.label for _, weights in targets.resolved if weights.chat_template_kwargs), None)
    if given is None or trainer.contract >= MIN_ARGUMENTS_CONTRACT:
        return None
    return _blocked(
        f"Checkpoint {given} was trained with chatTemplateKwargs, which need a trainer image of contract"
        f" {MIN_ARGUMENTS_CONTRACT}, and images.trainer of ComputeProfile {profile.name} has trainerContract"
        f" {trainer.contract}: use an image of this release"
    )


def check_serving(endpoint: InferenceDeployment, revision: Revision) -> Halt | None:
    """Refuse models and settings that the engine does not support."""
    profile = revision.profile
    config = serving_config(endpoint, revision, trainer_of(profile, "").contract)
    if profile.spec.serving.engine != BUILT_IN:
        return check_vllm(revision, config)
    return _check_built_in(profile, config)


def _check_built_in(profile: ComputeProfile, config: ServingConfig) -> Halt | None:
    unsupported = config.serve.unsupported_fields()
    if unsupported:
        fields = [f"spec.serving.{name}" for name in unsupported]
        return _blocked(
            f"{listed(fields)} need a trainer image of contract {MIN_SETTINGS_CONTRACT}, and images.trainer"
            f" of ComputeProfile {profile.name} has trainerContract {config.serve.contract}: use an image of"
            " this release, or remove the settings"
        )
    others = only_vllm(config.settings)
    if others:
        return Failed(
            Reason.UNSUPPORTED_BY_ENGINE,
            f"{listed(others)} need the engine VLLM, and ComputeProfile {profile.name} has engine:"
            f" {BUILT_IN}: remove them, or use a profile with engine: VLLM",
        )
    parser = config.settings.reasoning_parser
    if parser is not None and parser not in REASONING_PARSERS:
        return Failed(
            Reason.UNSUPPORTED_BY_ENGINE,
            f"spec.serving.reasoningParser: the engine {BUILT_IN} of ComputeProfile {profile.name} has no"
            f" parser {parser}; remove the field, or use {listed(REASONING_PARSERS, 'or')}",
        )
    return None


def _blocked(message: str, reason: Reason = Reason.PROFILE_INVALID) -> Blocked:
    return Blocked(reason, message, requeue_after=None)
