# SPDX-License-Identifier: Apache-2.0
"""Settings of an endpoint's server, which mean the same for each engine."""

from typing import Annotated, Final

from pydantic import Field

from finetune_operator.api.meta import Model, SecretReference, pattern_advice
from finetune_trainer.contract.serving import DefaultSamplingFields

MAX_CONTEXT: Final = 16 * 1024 * 1024
MAX_QUEUED_REQUESTS: Final = 65536
ENGINE_ARGUMENT: Final = r"^--[a-z0-9][a-z0-9-]*([.][A-Za-z0-9_.-]+)?(=.+)?$"
ENGINE_ARGUMENT_NAME: Final = r"^--[a-z0-9][a-z0-9-]*$"

EngineArgument = Annotated[
    str,
    Field(
        min_length=3,
        max_length=1024,
        pattern=ENGINE_ARGUMENT,
        json_schema_extra=pattern_advice(
            ENGINE_ARGUMENT,
            "write one argument per item, as --name or --name=value, for example --kv-cache-dtype=fp8",
        ),
    ),
]
EngineArgumentName = Annotated[
    str,
    Field(
        min_length=3,
        max_length=128,
        pattern=ENGINE_ARGUMENT_NAME,
        json_schema_extra=pattern_advice(
            ENGINE_ARGUMENT_NAME,
            "write the name of an argument without a value, for example --kv-cache-dtype",
        ),
    ),
]
ParserName = Annotated[str, Field(min_length=1, max_length=64)]


class DefaultSampling(DefaultSamplingFields, Model):
    """Sampling parameters of requests that do not set them."""


class Serving(Model):
    """Settings of the server. A change starts a new revision."""

    api_keys_secret_ref: Annotated[
        SecretReference | None,
        Field(
            description="Secret in the same namespace whose values are API keys, each under its own name"
            " that does not begin with a dot. Requests need one of the keys as a bearer token; /health and"
            " /metrics need none. A change of the Secret takes effect within about two minutes, without a"
            " restart; another Secret starts a new revision. Default: requests need no key."
        ),
    ] = None
    context_length: Annotated[
        int | None,
        Field(
            ge=16,
            le=MAX_CONTEXT,
            description="Max number of tokens of prompt and answer together, at most the context of the base"
            " model. Default: 4096 with the engine Transformers; with VLLM, the number that fits into the"
            " memory of the device.",
        ),
    ] = None
    max_tokens: Annotated[
        int | None,
        Field(
            ge=1,
            le=MAX_CONTEXT,
            description="Max number of tokens of an answer. It is the default of requests without max_tokens,"
            " except of /v1/completions, and answers of requests that ask for more end there. Default: what"
            " the context has left.",
        ),
    ] = None
    max_concurrent_requests: Annotated[
        int | None,
        Field(
            ge=1,
            le=4096,
            description="Max number of requests that a replica answers at the same time. More memory of the"
            " device is used with more requests. Default: 8 with the engine Transformers, 256 with VLLM.",
        ),
    ] = None
    max_queued_requests: Annotated[
        int | None,
        Field(
            ge=0,
            le=MAX_QUEUED_REQUESTS,
            description="Max number of requests that wait in a replica, in addition to those that it answers."
            " More requests are refused with 429 and Retry-After. Default: 64 with the engine Transformers,"
            f" {MAX_QUEUED_REQUESTS} with VLLM.",
        ),
    ] = None
    request_deadline_seconds: Annotated[
        int | None,
        Field(
            ge=1,
            le=86400,
            description="Seconds from the arrival of a request, including its time in the queue, after which"
            " it ends with 504, or a stream with an error event. A request that would wait too long to meet"
            " the deadline is refused with 429 and Retry-After. A terminating pod finishes its requests for"
            " the same time. Default: no deadline; a request that would wait for more than 30 s is refused,"
            " and a terminating pod finishes its requests for 110 s.",
        ),
    ] = None
    default_sampling: Annotated[
        DefaultSampling | None,
        Field(description="Sampling parameters of requests that do not set them. Default: see its fields."),
    ] = None
    reasoning_parser: Annotated[
        ParserName | None,
        Field(
            description="Parser that separates the reasoning of an answer from its content, named as in vLLM."
            " Default: the one that fits the chat template of the model; with the engine VLLM, the one that"
            " the Checkpoints record."
        ),
    ] = None
    tool_call_parser: Annotated[
        ParserName | None,
        Field(
            description="Parser that reads tool calls from answers, named as in vLLM. Needs the engine VLLM."
            " Default: none, and requests with tools are refused."
        ),
    ] = None
    extra_engine_arguments: Annotated[
        tuple[EngineArgument, ...],
        Field(
            max_length=32,
            description="Arguments of the engine VLLM in addition to those that the operator sets, one per"
            " item, as --name or --name=value. The ComputeProfile must allow each name in"
            " serving.allowedEngineArguments. Default: none.",
        ),
    ] = ()
