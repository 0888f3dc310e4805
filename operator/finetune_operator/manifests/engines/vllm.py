# SPDX-License-Identifier: Apache-2.0
"""vLLM as the engine of an endpoint and of an evaluate pod: its commands, and its container in an endpoint.

The init container of an endpoint's pod, which has the trainer image, writes the files that the options name:
chat template, stop tokens, and the middleware that guards the port. docs/serving.md explains each option.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.api.serving import MAX_QUEUED_REQUESTS
from finetune_operator.manifests.engines.engine_inputs import (
    DEADLINE_MARGIN_SECONDS,
    AnsweredModels,
    AnsweringEngine,
    ServingConfig,
)
from finetune_operator.manifests.trainer_config import config_variable, escape_variables
from finetune_operator.plan import Manifest
from finetune_trainer.contract.environment import (
    ANSWERS_MODELS,
    METRICS_PORT,
    SCRATCH_MOUNT,
    SERVE_PORT,
    VLLM_CHAT_TEMPLATE,
    VLLM_GENERATION_CONFIG,
    VLLM_MIDDLEWARE,
    VLLM_PYTHONPATH,
)
from finetune_trainer.contract.serving import ServeConfig

LORA_RANKS: Final = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values of --max-lora-rank."""
ASSUMED_RANK: Final = 64
"""Highest rank of adapters whose rank is not recorded; fetching them fails if it is higher."""
MAX_LORAS: Final = 8
"""Max number of adapters in one batch. Memory for each of them is reserved on the device."""
MAX_CONCURRENT_REQUESTS: Final = 256
"""Default of `spec.serving.maxConcurrentRequests`."""
STARTUP_SECONDS: Final = 7200
"""Seconds in which the engine can load its models before it is restarted. The endpoint's progress deadline
ends a rollout earlier."""
STARTUP_PERIOD_SECONDS: Final = 5

MANAGED: Final = frozenset(
    {
        "allowed-local-media-path",
        "allowed-media-domains",
        "api-key",
        "api-server-count",
        "chat-template",
        "config",
        "default-chat-template-kwargs",
        "enable-auto-tool-choice",
        "enable-lora",
        "enable-mm-embeds",
        "enable-prompt-embeds",
        "generation-config",
        "host",
        "language-model-only",
        "limit-mm-per-prompt",
        "lora-modules",
        "max-cpu-loras",
        "max-lora-rank",
        "max-loras",
        "max-model-len",
        "max-num-queued-reqs",
        "max-num-seqs",
        "middleware",
        "model",
        "override-generation-config",
        "port",
        "reasoning-parser",
        "served-model-name",
        "shutdown-timeout",
        "tensor-parallel-size",
        "tool-call-parser",
        "trust-remote-code",
        "trust-request-chat-template",
        "uds",
    }
)
"""Options that the operator sets, or whose effect would bypass it. No profile can allow them."""
TEXT_ONLY: Final = (
    '--limit-mm-per-prompt={"audio":0,"image":0,"video":0}',
    "--allowed-media-domains=none.invalid",
)
"""Options with which vLLM takes no images, audio or video, which a base model may support.

It would fetch them from any address that a client names. The middleware refuses such requests; if one reached
vLLM, only hosts with this name, which cannot exist, would be allowed.
"""


def max_lora_rank(config: ServingConfig) -> int:
    """The smallest value of --max-lora-rank for all adapters. Raises ValueError if there is none."""
    return lora_rank(
        max(weights.adapter.r if weights.adapter else ASSUMED_RANK for weights in config.adapters)
    )


def lora_rank(rank: int) -> int:
    """The smallest value of --max-lora-rank that is not below `rank`. Raises ValueError if there is none."""
    found = next((value for value in LORA_RANKS if value >= rank), None)
    if found is None:
        raise ValueError(f"rank {rank} is above {LORA_RANKS[-1]}")
    return found


def reasoning_parser(config: ServingConfig) -> str | None:
    """The parser of the user, or the first that a Checkpoint records; one server has one for all models."""
    recorded = (weights.reasoning_parser for weights in config.weights)
    return config.settings.reasoning_parser or next(filter(None, recorded), None)


def option_name(argument: str) -> str:
    """The option that an argument sets: `x` for `--x`, `--no-x`, `--x=1` and `--x.y=1`."""
    return argument.partition("=")[0].partition(".")[0].removeprefix("--").removeprefix("no-")


def is_managed(argument: str) -> bool:
    """Whether an argument sets an option of the operator, also by a prefix, which vLLM accepts too."""
    name = option_name(argument)
    return any(managed.startswith(name) for managed in MANAGED)


def argument_problems(arguments: Iterable[str], field: str, profile: ComputeProfile) -> Iterator[str]:
    """What keeps the engine from getting these arguments, by the field of the spec that has them."""
    allowed = set(profile.spec.serving.allowed_engine_arguments)
    for argument in arguments:
        name = argument.partition("=")[0].partition(".")[0]
        if is_managed(argument):
            yield f"{field}: {name} is set by the operator: remove it"
        elif name not in allowed:
            yield (
                f"{field}: {name} is not in serving.allowedEngineArguments of ComputeProfile {profile.name}:"
                " remove it, or ask the platform team to allow it"
            )


def vllm_command(config: ServingConfig) -> list[str]:
    """The command that serves the models of the config."""
    serve = config.serve
    model = f"{serve.models_path}/{serve.base_folder}"
    options = [*_models(config), *_limits(config), *TEXT_ONLY, *_server(config)]
    return ["vllm", "serve", model, *options, *config.settings.extra_engine_arguments]


def vllm_container(config: ServingConfig) -> Manifest:
    """Command, environment, ports and probes of the engine's container.

    The probes use the middleware's `/health`: it fails until each model has generated a token, and if vLLM
    reports that its engine is dead.
    """
    health = {"httpGet": {"path": "/health", "port": SERVE_PORT}}
    return {
        "command": [escape_variables(argument) for argument in vllm_command(config)],
        "env": [
            config_variable(_middleware_config(config)),
            *engine_environment(VLLM_PYTHONPATH),
            # Redirects of a host that is allowed could lead anywhere.
            {"name": "VLLM_MEDIA_URL_ALLOW_REDIRECTS", "value": "0"},
        ],
        # Not `http`: the metrics are on a port of their own.
        "ports": [
            {"name": "api", "containerPort": SERVE_PORT},
            {"name": "metrics", "containerPort": METRICS_PORT},
        ],
        "startupProbe": {
            **health,
            "periodSeconds": STARTUP_PERIOD_SECONDS,
            "timeoutSeconds": 5,
            "failureThreshold": STARTUP_SECONDS // STARTUP_PERIOD_SECONDS,
        },
        "readinessProbe": {**health, "periodSeconds": 2, "timeoutSeconds": 5},
        "livenessProbe": {**health, "periodSeconds": 10, "timeoutSeconds": 10, "failureThreshold": 6},
    }


def engine_environment(python_path: str) -> list[dict[str, str]]:
    """Variables of a container with the image of vLLM. `python_path`: folder of our package."""
    variables = {
        "HOME": SCRATCH_MOUNT,
        # The user of the pod has no entry in the image's /etc/passwd, where PyTorch would look for its name.
        "USER": "vllm",
        "PYTHONPATH": python_path,
        "HF_HUB_OFFLINE": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    return [{"name": name, "value": value} for name, value in variables.items()]


def served_models(adapters: Mapping[str, str], rank: int) -> Iterator[str]:
    """Options of a base model with adapters, given by their names and folders.

    Args:
        adapters: folder of each adapter.
        rank: a value of --max-lora-rank.
    """
    yield from ("--served-model-name=base", "--enable-lora")
    yield f"--max-loras={min(len(adapters), MAX_LORAS)}"
    yield f"--max-cpu-loras={len(adapters)}"
    yield f"--max-lora-rank={rank}"
    yield "--lora-modules"
    yield from (f"{name}={folder}" for name, folder in adapters.items())


def _models(config: ServingConfig) -> Iterator[str]:
    """Options of the models and their prompts."""
    serve = config.serve
    if config.adapters:
        folders = {model.name: f"{serve.models_path}/{model.folder}" for model in serve.models}
        yield from served_models(folders, max_lora_rank(config))
    else:
        yield f"--served-model-name={serve.models[0].name}"
    yield f"--chat-template={VLLM_CHAT_TEMPLATE}"
    yield f"--generation-config={VLLM_GENERATION_CONFIG}"
    if arguments := serve.models[0].chat_template_kwargs:
        yield f"--default-chat-template-kwargs={_json(arguments)}"
    if parser := reasoning_parser(config):
        yield f"--reasoning-parser={parser}"
    if parser := config.settings.tool_call_parser:
        yield from ("--enable-auto-tool-choice", f"--tool-call-parser={parser}")


def _concurrent(config: ServingConfig) -> int:
    """Max number of requests that a replica answers at the same time."""
    return config.settings.max_concurrent_requests or MAX_CONCURRENT_REQUESTS


def _middleware_config(config: ServingConfig) -> ServeConfig:
    """The config of the middleware, with the limits of this engine instead of those of the built-in one."""
    queued = config.settings.max_queued_requests
    return config.serve.model_copy(
        update={
            "max_batch_size": _concurrent(config),
            "max_queue": MAX_QUEUED_REQUESTS if queued is None else queued,
        }
    )


def _limits(config: ServingConfig) -> Iterator[str]:
    """Options of lengths, concurrency and sampling."""
    settings, sampling = config.settings, config.serve.default_sampling
    yield f"--max-model-len={settings.context_length or 'auto'}"
    yield f"--max-num-seqs={_concurrent(config)}"
    if settings.max_queued_requests is not None:
        # The option counts running requests too, and each choice of a request. The middleware refuses before.
        yield f"--max-num-queued-reqs={_concurrent(config) + settings.max_queued_requests}"
    defaults = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_new_tokens": settings.max_tokens,
    }
    chosen = {name: value for name, value in defaults.items() if value is not None}
    if chosen:
        yield f"--override-generation-config={_json(chosen)}"


def _server(config: ServingConfig) -> Iterator[str]:
    """Options of the process."""
    if config.accelerators > 1:
        yield f"--tensor-parallel-size={config.accelerators}"
    yield f"--port={SERVE_PORT}"
    yield f"--middleware={VLLM_MIDDLEWARE}"
    yield f"--shutdown-timeout={config.finish_seconds - DEADLINE_MARGIN_SECONDS}"


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True)


def vllm_answer_command(models: AnsweredModels) -> list[str]:
    """The command of a server. Requests set all that decides an answer, so that no file of a model does."""
    return ["vllm", "serve", f"{ANSWERS_MODELS}/{models.name}", *_options(models), *models.arguments]


def _options(models: AnsweredModels) -> Iterator[str]:
    if models.adapters:
        folders = {name: f"{ANSWERS_MODELS}/{name}" for name in models.adapters}
        yield from served_models(folders, lora_rank(models.max_rank))
    else:
        yield f"--served-model-name={models.name}"
    yield "--generation-config=vllm"
    yield "--max-model-len=auto"
    yield f"--max-num-seqs={MAX_CONCURRENT_REQUESTS}"
    if models.accelerators > 1:
        yield f"--tensor-parallel-size={models.accelerators}"
    yield from ("--host=127.0.0.1", f"--port={SERVE_PORT}")


VLLM_ANSWERING: Final = AnsweringEngine(
    highest_rank=LORA_RANKS[-1], command=vllm_answer_command, environment=engine_environment
)
