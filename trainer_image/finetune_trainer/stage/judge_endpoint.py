# SPDX-License-Identifier: Apache-2.0
"""The endpoint of a judge: its check before training, and what to do if it cannot be used."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Final

from finetune_trainer.contract.own_metrics import Judge
from finetune_trainer.remote.credentials import load_credentials
from finetune_trainer.remote.json_api import JsonApi, advise
from finetune_trainer.remote.retries import ProblemKind, RemoteProblem, Unreachable
from finetune_trainer.runtime.termination import StageFailure

CHECK_ATTEMPTS: Final = 3
UNKNOWN: Final = frozenset({ProblemKind.ABSENT, ProblemKind.REFUSED})
"""Problems of servers that list no models."""


class JudgeProblem(Exception):
    """A judge that cannot be used. The text is for the user."""


def resolve_endpoint(judge: Judge) -> Judge:
    """The judge with its address, which is in the Secret if the judge needs credentials.

    Raises StageFailure (INVALID_CREDENTIALS).
    """
    if judge.endpoint is not None:
        return judge
    credentials = load_credentials(judge.credentials)
    return judge.model_copy(update={"endpoint": "" if credentials is None else credentials.endpoint})


def endpoint_problem(judge: Judge, problem: RemoteProblem) -> JudgeProblem:
    """The problem of an endpoint, with what to do."""
    advice = advise(problem, judge.credentials, "check its endpoint and model")
    return JudgeProblem(f"judge {judge.name}: {judge.endpoint}: {problem.text}; {advice}")


def open_endpoint(judge: Judge, on_attempt: Callable[[], None] = lambda: None) -> JsonApi:
    """Open the API of a judge. Sends no request yet.

    Raises StageFailure (INVALID_CONFIG, INVALID_CREDENTIALS).
    """
    return JsonApi(resolve_endpoint(judge).endpoint or "", load_credentials(judge.credentials), on_attempt)


def judge_warnings(judges: Sequence[Judge]) -> Iterator[str]:
    """Yield what will keep judges from working, by the lists of models of their endpoints. Makes no call.

    Servers without such a list, and lists of another form, say nothing.
    """
    for each in judges:
        try:
            yield from _warnings_of(resolve_endpoint(each))
        except StageFailure as failure:
            yield f"judge {each.name}: {failure.message}"


def _warnings_of(judge: Judge) -> Iterator[str]:
    """Raises StageFailure (INVALID_CONFIG, INVALID_CREDENTIALS)."""
    try:
        listed = asyncio.run(_models(judge))
    except Unreachable as error:
        if error.problem.kind not in UNKNOWN:
            yield str(endpoint_problem(judge, error.problem))
    else:
        if listed and judge.model not in listed:
            yield f"judge {judge.name}: {judge.endpoint} does not list the model {judge.model}"


async def _models(judge: Judge) -> frozenset[str]:
    async with open_endpoint(judge) as api:
        response: Any = await api.get("models", attempts=CHECK_ATTEMPTS)
    with suppress(LookupError, TypeError):
        return frozenset(str(model["id"]) for model in response["data"])
    return frozenset()
