# SPDX-License-Identifier: Apache-2.0
"""What the engine of an endpoint does not support, found before a pod starts, by the field of the spec.

The init container checks what only the files of the weights show: chat templates that differ, and adapters
whose rank and method are not recorded.
"""

from collections.abc import Callable, Iterator
from typing import Final

from finetune_operator.api.compute_profile import BUILT_IN, ComputeProfile
from finetune_operator.api.inference_deployment import InferenceDeployment
from finetune_operator.api.serving import Serving
from finetune_operator.manifests.endpoint import fetch_config
from finetune_operator.manifests.engines.engine_inputs import ServingConfig, serving_config
from finetune_operator.manifests.engines.vllm import LORA_RANKS, argument_problems
from finetune_operator.manifests.revision import Revision
from finetune_operator.manifests.trainer_config import choose_trainer, store_config
from finetune_operator.reconcile.passes import Blocked, Failed, PassOutcome
from finetune_operator.reconcile.platform.profiles import check_config
from finetune_operator.status.reasons import Reason
from finetune_trainer.contract.serving import REASONING_PARSERS
from finetune_trainer.contract.vocabulary import join_names

ELSEWHERE: Final = (
    "serve it from an InferenceDeployment of its own with merge: true, or whose ComputeProfile has engine:"
    " Transformers"
)

Problems = Iterator[str]


def check_vllm(revision: Revision, config: ServingConfig) -> Failed | None:
    """All that vLLM cannot serve; None if it can serve the revision."""
    problems = [problem for check in CHECKS for problem in check(revision, config)]
    return Failed(Reason.UNSUPPORTED_BY_ENGINE, "; ".join(problems)) if problems else None


def _adapters(revision: Revision, _: ServingConfig) -> Problems:
    for name, weights in revision.models:
        adapter = weights.adapter
        if adapter is not None and adapter.dora:
            yield (
                f"spec.models[{name}]: {weights.label} was trained with DoRA, which vLLM does not serve:"
                f" {ELSEWHERE}, or train it without method.lora.dora"
            )
        elif adapter is not None and adapter.r > LORA_RANKS[-1]:
            yield (
                f"spec.models[{name}]: {weights.label} has rank {adapter.r}, and vLLM serves ranks up to"
                f" {LORA_RANKS[-1]}: {ELSEWHERE}, or train it with a smaller method.lora.r"
            )


def _template_arguments(revision: Revision, _: ServingConfig) -> Problems:
    first, *others = revision.models
    for name, weights in others:
        if weights.chat_template_kwargs != first[1].chat_template_kwargs:
            yield (
                f"spec.models[{name}]: {weights.label} was trained with other chatTemplateKwargs than"
                f" {first[1].label} of model {first[0]}, and a vLLM server has one set for all of its models:"
                " serve it from an InferenceDeployment of its own"
            )


def _parsers(revision: Revision, config: ServingConfig) -> Problems:
    parsers = {weights.reasoning_parser for _, weights in revision.models}
    recorded = sorted(filter(None, parsers))
    if len(recorded) > 1 and config.settings.reasoning_parser is None:
        yield (
            f"spec.models: the Checkpoints have the reasoning parsers {join_names(recorded)}, and a vLLM "
            "server"
            " has one for all of its models: serve them from separate InferenceDeployments, or set"
            " spec.serving.reasoningParser"
        )


def _arguments(revision: Revision, config: ServingConfig) -> Problems:
    arguments, field = config.settings.extra_engine_arguments, "spec.serving.extraEngineArguments"
    return argument_problems(arguments, field, revision.profile)


CHECKS: Final[tuple[Callable[[Revision, ServingConfig], Problems], ...]] = (
    _adapters,
    _template_arguments,
    _parsers,
    _arguments,
)

NOT_BUILT_IN: Final = {
    "tool_call_parser": "spec.serving.toolCallParser",
    "extra_engine_arguments": "spec.serving.extraEngineArguments",
}
"""Settings that only vLLM has."""


def only_vllm(settings: Serving) -> tuple[str, ...]:
    """The settings, by path, that the built-in engine does not have."""
    return tuple(path for name, path in NOT_BUILT_IN.items() if getattr(settings, name))


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


def check_serving(endpoint: InferenceDeployment, revision: Revision) -> PassOutcome | None:
    """Refuse models and settings that the engine does not support."""
    profile, contract = revision.profile, choose_trainer(revision.profile, "").contract
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


def _check_built_in(profile: ComputeProfile, config: ServingConfig) -> PassOutcome | None:
    others = only_vllm(config.settings)
    if others:
        return Failed(
            Reason.UNSUPPORTED_BY_ENGINE,
            f"{join_names(others)} need the engine VLLM, and ComputeProfile {profile.name} has "
            "serving.engine:"
            f" {BUILT_IN}: remove them, or use a profile with serving.engine: VLLM",
        )
    parser = config.settings.reasoning_parser
    if parser is not None and parser not in REASONING_PARSERS:
        return Failed(
            Reason.UNSUPPORTED_BY_ENGINE,
            f"spec.serving.reasoningParser: the engine {BUILT_IN} of ComputeProfile {profile.name} has no"
            f" parser {parser}; remove the field, or use {join_names(REASONING_PARSERS, 'or')}",
        )
    return None
