# SPDX-License-Identifier: Apache-2.0
"""What the engine of an endpoint does not support, found before a pod starts."""

from finetune_operator.api.compute_profile import BUILT_IN, ComputeProfile
from finetune_operator.api.inference_deployment import InferenceDeployment
from finetune_operator.manifests.endpoint import fetch_config
from finetune_operator.manifests.engines.engine_inputs import ServingConfig, serving_config
from finetune_operator.manifests.revision import Revision
from finetune_operator.manifests.trainer_config import store_config, trainer_of
from finetune_operator.reconcile.inferencedeployment.revision.vllmchecks import check_vllm, only_vllm
from finetune_operator.reconcile.platform.profiles import check_config
from finetune_operator.reconcile.steps import Blocked, Failed, Halt
from finetune_operator.status.reasons import Reason
from finetune_trainer.contract.serving import REASONING_PARSERS
from finetune_trainer.contract.vocabulary import listed


def check_engine(profile: ComputeProfile) -> Blocked | None:
    """Whether the profile has the image of its engine."""
    if profile.spec.serving.engine == BUILT_IN or profile.spec.images.engine is not None:
        return None
    return Blocked(
        Reason.PROFILE_INVALID,
        f"ComputeProfile {profile.name} has serving.engine: {profile.spec.serving.engine} but no"
        " images.engine: set it to an image of vLLM, such as vllm/vllm-openai by digest, or use a profile"
        f" with {BUILT_IN}",
        requeue_after=None,
    )


def check_serving(endpoint: InferenceDeployment, revision: Revision) -> Halt | None:
    """Refuse models and settings that the engine does not support."""
    profile, contract = revision.profile, trainer_of(revision.profile, "").contract
    config = serving_config(endpoint, revision, contract)
    if profile.spec.serving.engine == BUILT_IN:
        refused = _check_built_in(profile, config)
    else:
        refused = check_vllm(revision, config)
    if refused is not None:
        return refused
    store = store_config(revision.store, revision.store_credentials)
    fetched = fetch_config(endpoint, revision, contract, store)
    return check_config(config.serve, profile) or check_config(fetched, profile)


def _check_built_in(profile: ComputeProfile, config: ServingConfig) -> Halt | None:
    others = only_vllm(config.settings)
    if others:
        return Failed(
            Reason.UNSUPPORTED_BY_ENGINE,
            f"{listed(others)} need the engine VLLM, and ComputeProfile {profile.name} has serving.engine:"
            f" {BUILT_IN}: remove them, or use a profile with serving.engine: VLLM",
        )
    parser = config.settings.reasoning_parser
    if parser is not None and parser not in REASONING_PARSERS:
        return Failed(
            Reason.UNSUPPORTED_BY_ENGINE,
            f"spec.serving.reasoningParser: the engine {BUILT_IN} of ComputeProfile {profile.name} has no"
            f" parser {parser}; remove the field, or use {listed(REASONING_PARSERS, 'or')}",
        )
    return None
