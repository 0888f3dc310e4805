"""What the engine of an endpoint does not support, found before a pod starts."""

from typing import Final

from finetune_operator.api.computeprofile import ComputeProfile
from finetune_operator.api.inferencedeployment import InferenceDeployment
from finetune_operator.manifests.engines.serveconfig import serve_config
from finetune_operator.manifests.revision import Revision, api_keys_secret
from finetune_operator.manifests.trainerimage import trainer_of
from finetune_operator.reconcile.inferencedeployment.targets import Targets
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


def check_settings(endpoint: InferenceDeployment, revision: Revision) -> Halt | None:
    """Refuse settings that the engine does not have, because it would serve without them."""
    profile = revision.profile
    trainer = trainer_of(profile, "")
    unsupported = serve_config(endpoint, revision, trainer.contract).unsupported_fields()
    if unsupported:
        fields = [f"spec.serving.{name}" for name in unsupported]
        return _blocked(
            f"{listed(fields)} need a trainer image of contract {MIN_SETTINGS_CONTRACT}, and images.trainer"
            f" of ComputeProfile {profile.name} has trainerContract {trainer.contract}: use an image of this"
            " release, or remove the settings"
        )
    parser = endpoint.spec.serving.reasoning_parser if endpoint.spec.serving is not None else None
    if parser is not None and parser not in REASONING_PARSERS:
        return Failed(
            Reason.INVALID_SPEC,
            f"spec.serving.reasoningParser: the engine Transformers of ComputeProfile {profile.name} has no"
            f" parser {parser}; remove the field, or use {listed(REASONING_PARSERS, 'or')}",
        )
    return None


def _blocked(message: str) -> Blocked:
    return Blocked(Reason.PROFILE_INVALID, message, requeue_after=None)
