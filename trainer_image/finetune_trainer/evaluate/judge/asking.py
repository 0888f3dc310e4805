# SPDX-License-Identifier: Apache-2.0
"""Makes the calls of a judge, several at a time, and keeps each reply as it arrives."""

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from finetune_trainer.evaluate.judge.prompt import read_verdict
from finetune_trainer.evaluate.judge.questions import Question
from finetune_trainer.evaluate.judge.verdictlog import JudgeReply
from finetune_trainer.remote.jsonapi import JsonApi
from finetune_trainer.remote.remoteproblems import ProblemKind
from finetune_trainer.remote.retries import Unreachable
from finetune_trainer.runtime.scrubbing import SCRUBBER
from finetune_trainer.runtime.signals import Stop

CALL: Final = "chat/completions"
CALLS_IN_FLIGHT: Final = 8
LOOK_SECONDS: Final = 1.0
"""Max time until a signal is noticed."""
DRAIN_SECONDS: Final = 10.0
"""Time for the calls in flight to end after a signal."""


async def ask_all(
    api: JsonApi,
    questions: Iterable[Question],
    on_reply: Callable[[JudgeReply], None],
    stop: Stop,
    feed: Callable[[], None],
) -> None:
    """Make all calls, or those in flight when `stop` is set.

    Args:
        api: the endpoint of the judge.
        questions: the calls to make.
        on_reply: gets each reply; an exception of it ends the calls.
        stop: set by a signal.
        feed: called at least once per second.

    Raises Unreachable if the endpoint cannot be used.
    """
    waiting, running = iter(questions), set[asyncio.Task[JudgeReply]]()
    deadline = float("inf")
    async with api:
        while True:
            while len(running) < CALLS_IN_FLIGHT and not stop.is_set():
                question = next(waiting, None)
                if question is None:
                    break
                running.add(asyncio.create_task(_ask(api, question)))
            if not running or time.monotonic() > deadline:
                return
            done, running = await asyncio.wait(
                running, timeout=LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            feed()
            failures = [error for task in done if (error := task.exception()) is not None]
            for task in done:
                if task.exception() is None:
                    on_reply(task.result())
            if failures:
                raise failures[0]
            if stop.is_set():
                deadline = min(deadline, time.monotonic() + DRAIN_SECONDS)


async def _ask(api: JsonApi, question: Question) -> JudgeReply:
    """Make one call. Raises Unreachable, except if the endpoint refuses this call only."""
    try:
        reply = _text_of(await api.post(CALL, dict(question.body)))
    except Unreachable as error:
        if error.problem.kind is not ProblemKind.REFUSED:
            raise
        return _reply(question, reason=error.problem.text)
    verdict = read_verdict(reply)
    if verdict is None:
        return _reply(question, reason="the reply has no verdict")
    return _reply(question, better=verdict.better, reason=SCRUBBER.scrub(verdict.reason))


def _reply(question: Question, **found: Any) -> JudgeReply:
    return JudgeReply(
        digest=question.digest,
        row=question.pair.row,
        tuned="A" if question.tuned_first else "B",
        **found,
    )


def _text_of(response: Any) -> str:
    """The text of the first choice; empty if there is none."""
    try:
        return str(response["choices"][0]["message"]["content"] or "")
    except (LookupError, TypeError):
        return ""
