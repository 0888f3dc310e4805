# SPDX-License-Identifier: Apache-2.0
"""Inputs of a serving engine, the same for each one: the config of a replica, or the models that answer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from finetune_operator.api.inference_deployment import InferenceDeployment
from finetune_operator.api.pod_resources import CPU
from finetune_operator.api.serving import Serving
from finetune_operator.manifests.revision import Revision, api_keys_secret
from finetune_operator.manifests.trainer_config import owner_of_pod
from finetune_operator.manifests.weights import WeightsReference
from finetune_trainer.contract.environment import API_KEYS_MOUNT
from finetune_trainer.contract.serving import DefaultSampling, ServeConfig, ServedModel
from finetune_trainer.contract.vocabulary import FULL_MODEL


@dataclass(frozen=True, slots=True, kw_only=True)
class AnsweredModels:
    """What one server loads: a base model or a whole one, and its adapters."""

    name: str
    """Name and folder of the base model or whole model."""
    adapters: tuple[str, ...]
    """Names and folders of the adapters. With them, the base model has the name `BASE_FOLDER`."""
    max_rank: int
    """Highest rank of the adapters."""
    accelerators: int
    """Accelerators of the pod; 0 if devices are CPU cores."""
    arguments: tuple[str, ...] = ()
    """Arguments of the user, after those of the operator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnsweringEngine:
    """An engine whose server has the completions API of vLLM, with token ids."""

    highest_rank: int
    """Highest rank of an adapter that it loads. It loads no DoRA."""
    command: Callable[[AnsweredModels], list[str]]
    """Command of a server on the loopback address."""
    environment: Callable[[str], list[dict[str, str]]]
    """Variables of its container, given the folder of our package."""


DRAIN_SECONDS: Final = 10
"""Seconds for which a terminating pod still accepts requests; kube-proxy needs less on every node."""
FINISH_SECONDS: Final = 110
"""Seconds after that in which requests in flight can finish, unless they have a deadline."""
DEADLINE_MARGIN_SECONDS: Final = 10
"""Seconds after the deadline of the last request in which the process can end."""


@dataclass(frozen=True, slots=True)
class ServingConfig:
    """What a replica serves and how. Each engine builds its container from it."""

    serve: ServeConfig
    """Models, limits and ports. The engine's process reads it, whichever engine it is."""
    settings: Serving
    """Settings of the user; those that are absent are the choice of the engine."""
    weights: tuple[WeightsReference, ...]
    """The weights of `serve.models`, in their order."""
    accelerators: int
    """Accelerators per replica; 0 where devices are CPU cores."""
    finish_seconds: int
    """Seconds in which requests in flight can finish after the last one was accepted."""

    @property
    def adapters(self) -> tuple[WeightsReference, ...]:
        """The weights that are adapters; none if the model is a whole one."""
        return tuple(weights for weights in self.weights if weights.type != FULL_MODEL)


def serving_config(endpoint: InferenceDeployment, revision: Revision, contract: int) -> ServingConfig:
    """The config of a revision's replicas. `contract` is the version that the trainer image knows."""
    serving = endpoint.spec.serving or Serving()
    has_accelerators = revision.profile.spec.accelerator.resource != CPU
    return ServingConfig(
        serve=serve_config(endpoint, revision, contract),
        settings=serving,
        weights=tuple(weights for _, weights in revision.models),
        accelerators=endpoint.spec.compute.devices if has_accelerators else 0,
        finish_seconds=finish_seconds(endpoint),
    )


def serve_config(endpoint: InferenceDeployment, revision: Revision, contract: int) -> ServeConfig:
    """The config of a revision's server. `contract` is the version that its reader knows."""
    return ServeConfig(
        contract=contract,
        owner=owner_of_pod(endpoint),
        base_folder=base_folder(revision),
        models=tuple(
            ServedModel(
                name=name,
                folder=name,
                type=weights.type,
                chat_template_kwargs=weights.chat_template_kwargs,
            )
            for name, weights in revision.models
        ),
        drain_seconds=DRAIN_SECONDS,
        api_keys_path=API_KEYS_MOUNT if api_keys_secret(endpoint) is not None else None,
        **_settings(endpoint.spec.serving or Serving()),
    )


def base_folder(revision: Revision) -> str:
    """Folder of the base model. `base` is not the name of a model, because the API refuses that name."""
    return revision.models[0][0] if revision.is_full else "base"


def finish_seconds(endpoint: InferenceDeployment) -> int:
    """Seconds in which requests in flight can finish after the last one was accepted."""
    deadline = (endpoint.spec.serving or Serving()).request_deadline_seconds
    return FINISH_SECONDS if deadline is None else deadline + DEADLINE_MARGIN_SECONDS


def _settings(serving: Serving) -> dict[str, Any]:
    """The settings that are set, by the fields of the config; the engine has defaults for all others."""
    sampling = serving.default_sampling
    settings = {
        "max_model_length": serving.context_length,
        "max_tokens": serving.max_tokens,
        "max_batch_size": serving.max_concurrent_requests,
        "max_queue": serving.max_queued_requests,
        "request_deadline_seconds": serving.request_deadline_seconds,
        "default_sampling": DefaultSampling(**sampling.model_dump()) if sampling is not None else None,
        "reasoning_parser": serving.reasoning_parser,
    }
    return {name: value for name, value in settings.items() if value is not None}
