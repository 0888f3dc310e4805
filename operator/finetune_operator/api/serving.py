"""Settings of an endpoint's server, which mean the same for each engine."""

from typing import Annotated, Final

from pydantic import Field

from finetune_operator.api.meta import Model, SecretReference
from finetune_trainer.contract.serving import DefaultSamplingFields

MAX_CONTEXT: Final = 16 * 1024 * 1024
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
            " model. Default: 4096.",
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
            " device is used with more requests. Default: 8.",
        ),
    ] = None
    max_queued_requests: Annotated[
        int | None,
        Field(
            ge=0,
            le=65536,
            description="Max number of requests that wait in a replica, in addition to those that it answers."
            " More requests are refused with 429. Default: 64.",
        ),
    ] = None
    request_deadline_seconds: Annotated[
        int | None,
        Field(
            ge=1,
            le=86400,
            description="Seconds from the arrival of a request, including its time in the queue, after which"
            " it ends with 504, or a stream with an error event. A terminating pod finishes its requests for"
            " the same time. Default: no deadline; a terminating pod finishes its requests for 110 s.",
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
            " Default: the one that fits the chat template of the model."
        ),
    ] = None
