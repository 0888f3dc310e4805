# SPDX-License-Identifier: Apache-2.0
"""The life of a vLLM server: metrics and a self-test of its models at the start, a drain at the end.

In the self-test, before the first request, every model generates a token, and must predict what it did when
trained. Its requests are those of a client, through vLLM's own API, within the process. How vLLM computes,
and how much, decides what can be compared and how exactly.
"""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Final, NoReturn

import httpx
from prometheus_client import REGISTRY, CollectorRegistry, start_http_server
from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send

from finetune_trainer.contract.serving import ServeConfig, ServedModel
from finetune_trainer.contract.vocabulary import ADAPTER, ExitCode, FailureReason
from finetune_trainer.model.probe_record import NO_CHANGE_NATS, Computation, ProbeRecord, TopTokens
from finetune_trainer.runtime import logs, termination
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.serve.http_middleware import Drain
from finetune_trainer.serve.served_models import (
    BASE_NAME,
    make_no_effect_failure,
    probe_record,
    read_identities,
    require_probe,
    served_names,
)
from finetune_trainer.serve.serving_metrics import RequestMetrics

UNKNOWN: Final = "unknown"


def read_computation(server: Starlette) -> Computation:
    """That of vLLM's application. Device and dtype are `UNKNOWN` if its version has its config elsewhere."""
    try:
        config = server.state.vllm_config
        return Computation(
            engine="VLLM",
            device=str(config.device_config.device_type),
            dtype=str(config.model_config.dtype).removeprefix("torch."),
            quantized=config.model_config.quantization is not None,
        )
    except AttributeError:
        return Computation("VLLM", UNKNOWN, UNKNOWN, quantized=False)


def max_prompt_tokens(server: Starlette) -> float:
    """Length of the longest prompt after which the server generates a token; infinite if it is not known."""
    try:
        return int(server.state.vllm_config.model_config.max_model_len) - 1
    except AttributeError:
        return float("inf")


TOP_TOKENS: Final = 20
"""Log-probabilities per request: vLLM's default limit."""
TEXTS: Final = ("Hello", "Name three colours.", "Write a function that adds two numbers.")
"""Requests to each model: the first at each start, the others to an adapter that does not change its
prediction."""
TopLogProbabilities = Mapping[int, float]
"""Log-probabilities of the most likely tokens, in nats, by token id."""
Predict = Callable[[str], Awaitable[TopLogProbabilities]]
"""Predictions of the model with this name after one prompt."""

_TOKEN_ID: Final = "token_id:"

logger = logging.getLogger(__name__)


async def check_models(
    engine: ASGIApp, server: Starlette, config: ServeConfig, computation: Computation
) -> None:
    """Check all models of the config.

    Raises StageFailure naming the model: ARTIFACT_CORRUPT if an adapter changes nothing, or weights do not
    predict what was recorded; BASE_MODEL_INVALID if vLLM refuses its requests; INTERNAL if vLLM fails.
    """
    async with _client(engine, server) as client:
        # Each model once, after the same prompt: vLLM reuses passes over the start of an earlier one.
        predicted = {name: await _after_text(client, TEXTS[0], name) for name in served_names(config)}
        logger.info("each model generates: %s", ", ".join(predicted))
        for model in config.models:
            record = probe_record(Path(config.models_path), model.folder)
            if record is not None:
                record = limit_record(record, max_prompt_tokens(server))
            if model.type == ADAPTER:
                smallest = NO_CHANGE_NATS.get(computation.dtype, 0)
                change = measure_change(predicted[model.name], predicted[BASE_NAME])
                if change <= smallest and not await _changes(model.name, _others(client, record), smallest):
                    raise make_no_effect_failure(model.name)
            if record is not None:
                await _check_record(client, model, record, computation)


def limit_record(record: ProbeRecord, max_tokens: float) -> ProbeRecord | None:
    """The part of a record whose prompts have at most this many tokens; None if no prompt has."""
    kept = [number for number, prompt in enumerate(record.prompts) if len(prompt) <= max_tokens]
    if len(kept) < len(record.prompts):
        logger.warning("%d prompts of the probe exceed the context", len(record.prompts) - len(kept))
    prompts, tuned = (tuple(each[number] for number in kept) for each in (record.prompts, record.tuned))
    return record.model_copy(update={"prompts": prompts, "tuned": tuned}) if kept else None


async def _changes(name: str, others: Sequence[Predict], smallest: float) -> bool:
    """Whether an adapter changes a prediction by more than `smallest` nats.

    A weak one may not change each of them: in bfloat16, rounding hides small differences.
    """
    for predict in others:
        if measure_change(await predict(name), await predict(BASE_NAME)) > smallest:
            return True
    return False


def _others(client: httpx.AsyncClient, record: ProbeRecord | None) -> list[Predict]:
    """Predictions after prompts other than the first: those of the record come from the training rows."""
    prompts = () if record is None else record.prompts
    return [
        *(partial(_after_tokens, client, prompt) for prompt in prompts),
        *(partial(_after_text, client, text) for text in TEXTS[1:]),
    ]


async def _check_record(
    client: httpx.AsyncClient, model: ServedModel, record: ProbeRecord, computation: Computation
) -> None:
    found = [await _after_tokens(client, prompt, model.name) for prompt in record.prompts]
    difference = max(map(measure_difference, record.tuned, found), default=0.0)
    require_probe(model.name, record, computation, _version(), difference)


def measure_change(one: TopLogProbabilities, other: TopLogProbabilities) -> float:
    """Largest difference between two predictions after the same prompt; infinite for other tokens."""
    if one.keys() != other.keys():
        return float("inf")
    return max(abs(one[token] - other[token]) for token in one)


def measure_difference(recorded: TopTokens, found: TopLogProbabilities) -> float:
    """Largest difference of the log-probability of a recorded token, in nats.

    For a token that is not among those found, the difference is at least that from the least likely of them.
    """
    least = min(found.values())
    return max(
        abs(value - found[token]) if token in found else max(value - least, 0.0)
        for token, value in zip(recorded.ids, recorded.log_probabilities, strict=True)
    )


def _version() -> str:
    try:
        return metadata.version("vllm")
    except metadata.PackageNotFoundError:
        return "of an unknown version"


def _client(engine: ASGIApp, server: Starlette) -> httpx.AsyncClient:
    async def within(scope: Scope, receive: Receive, send: Send) -> None:
        await engine({**scope, "app": server}, receive, send)

    # Without a limit: the first request of a large model can take minutes.
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(within),
        base_url="http://vllm",
        timeout=None,  # noqa: S113
    )


async def _after_text(client: httpx.AsyncClient, text: str, name: str) -> TopLogProbabilities:
    body = {
        "messages": [{"role": "user", "content": text}],
        "logprobs": True,
        "top_logprobs": TOP_TOKENS,
    }
    choice = await _first_choice(client, "/v1/chat/completions", name, body)
    (first, *_) = choice["logprobs"]["content"]
    return _by_id({each["token"]: each["logprob"] for each in first["top_logprobs"]})


async def _after_tokens(client: httpx.AsyncClient, prompt: Sequence[int], name: str) -> TopLogProbabilities:
    body = {"prompt": list(prompt), "logprobs": TOP_TOKENS}
    choice = await _first_choice(client, "/v1/completions", name, body)
    return _by_id(choice["logprobs"]["top_logprobs"][0])


async def _first_choice(client: httpx.AsyncClient, path: str, name: str, body: Mapping[str, Any]) -> Any:
    common = {"model": name, "max_tokens": 1, "temperature": 0, "return_tokens_as_token_ids": True}
    try:
        answer = await client.post(path, json={**common, **body})
    except Exception as error:
        raise _engine_failed(name, f"{type(error).__name__}: {error}") from error
    if answer.status_code >= httpx.codes.INTERNAL_SERVER_ERROR:
        raise _engine_failed(name, answer.text)
    if answer.status_code != httpx.codes.OK:
        raise StageFailure(
            FailureReason.BASE_MODEL_INVALID,
            f"model {name!r} could not generate a first token: {answer.text}",
        )
    return answer.json()["choices"][0]


def _engine_failed(name: str, reason: str) -> StageFailure:
    return StageFailure(
        FailureReason.INTERNAL,
        f"model {name!r} could not generate a first token: {reason}; the pod's log has the cause",
        ExitCode.INTERNAL,
    )


def _by_id(logprobs: Mapping[str, float]) -> TopLogProbabilities:
    return {int(token.removeprefix(_TOKEN_ID)): value for token, value in logprobs.items()}


def end_process(failure: StageFailure) -> NoReturn:
    """Write the failure to the log and the termination message, and exit with its code.

    As a trainer process ends. vLLM would report an error of the middleware as 500 to each client.
    """
    text = f"{failure.reason}: {failure.message}"
    logger.error(text)
    termination.write(text)
    sys.stdout.flush()
    os._exit(failure.exit_code)


class Lifetime:
    """State of one server, from its config.

    `end_process` is called with the failure of a check. `registry` has the metrics of the server.
    """

    def __init__(
        self,
        config: ServeConfig,
        end_process: Callable[[StageFailure], object] = end_process,
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        self.config = config
        self.models = served_names(config)
        self.metrics = RequestMetrics(registry)
        for model in self.models:
            self.metrics.begin_requests(model)
        self.drain = Drain(config.drain_seconds)
        self.ready = False
        """Whether every model has generated a token and passed its checks."""
        self._end_process = end_process
        self._task: asyncio.Task[None] | None = None

    def start(self, engine: ASGIApp, server: Starlette) -> None:
        """Begin when vLLM's server has started. Must be called in the main thread, with its event loop.

        Args:
            engine: layers of the server below the middleware.
            server: vLLM's application.
        """
        logs.configure_own_logs()
        # vLLM's metrics are in the default registry, because a pod has one API process.
        try:
            start_http_server(self.config.metrics_port, registry=self.metrics.registry)
        except OSError as error:
            logger.warning(
                "metrics are not served, because port %d cannot be used: %s", self.config.metrics_port, error
            )
        loop = asyncio.get_running_loop()
        # In the place of vLLM's own handler, which fails new requests at once.
        loop.add_signal_handler(signal.SIGTERM, self._begin_drain)
        self._task = loop.create_task(self.test(engine, server))

    async def test(self, engine: ASGIApp, server: Starlette) -> None:
        """Check the models, after which the server is ready. A failure ends the process."""
        try:
            await check_models(engine, server, self.config, read_computation(server))
        except StageFailure as failure:
            self._end_process(failure)
            return
        except Exception as error:
            logger.exception("the self-test ended with an unexpected error")
            self._end_process(
                StageFailure(
                    FailureReason.INTERNAL,
                    f"{type(error).__name__}: {error}; the pod's log has the traceback; please report it",
                    ExitCode.INTERNAL,
                )
            )
            return
        for identity in read_identities(self.config):
            self.metrics.model_info.labels(*identity).set(1)
        self.ready = True
        logger.info("ready")

    def _begin_drain(self) -> None:
        if self.drain.active:
            return
        self.drain.begin()
        logger.info("draining for %g seconds", self.config.drain_seconds)
        # vLLM handles SIGINT as it handles SIGTERM: it finishes the requests in flight, and exits.
        asyncio.get_running_loop().call_later(self.config.drain_seconds, signal.raise_signal, signal.SIGINT)
