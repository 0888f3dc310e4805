# SPDX-License-Identifier: Apache-2.0
"""Self-test before the first request: every model generates a token, and predicts what it did when trained.

Its requests are those of a client, through vLLM's own API, within the process.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import httpx
from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send

from finetune_trainer.contract.serving import ServeConfig, ServedModel
from finetune_trainer.contract.vocabulary import ADAPTER, ExitCode, FailureReason
from finetune_trainer.model.probe_record import NO_CHANGE_NATS, Computation, ProbeRecord, TopTokens
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.serve.checkfailures import require_probe, without_effect
from finetune_trainer.serve.modelfolders import probe_record
from finetune_trainer.serve.names import BASE_NAME, served_names
from finetune_trainer.serve.vllm.computation import max_prompt_tokens

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
                record = within(record, max_prompt_tokens(server))
            if model.type == ADAPTER:
                smallest = NO_CHANGE_NATS.get(computation.dtype, 0)
                change = change_of(predicted[model.name], predicted[BASE_NAME])
                if change <= smallest and not await _changes(model.name, _others(client, record), smallest):
                    raise without_effect(model.name)
            if record is not None:
                await _check_record(client, model, record, computation)


def within(record: ProbeRecord, max_tokens: float) -> ProbeRecord | None:
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
        if change_of(await predict(name), await predict(BASE_NAME)) > smallest:
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
    difference = max(map(difference_from, record.tuned, found), default=0.0)
    require_probe(model.name, record, computation, _version(), difference)


def change_of(one: TopLogProbabilities, other: TopLogProbabilities) -> float:
    """Largest difference between two predictions after the same prompt; infinite for other tokens."""
    if one.keys() != other.keys():
        return float("inf")
    return max(abs(one[token] - other[token]) for token in one)


def difference_from(recorded: TopTokens, found: TopLogProbabilities) -> float:
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
