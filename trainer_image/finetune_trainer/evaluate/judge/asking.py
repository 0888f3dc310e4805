# SPDX-License-Identifier: Apache-2.0
"""Makes the calls of a judge, several at a time, and keeps each reply as it arrives."""

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from finetune_trainer.evaluate.judge.prompt import read_verdict
from finetune_trainer.evaluate.judge.questions import Question
from finetune_trainer.evaluate.judge.verdictlog import JudgeReply
from finetune_trainer.remote.json_api import JsonApi
from finetune_trainer.remote.retries import ProblemKind, Unreachable
from finetune_trainer.runtime.logs import SCRUBBER
from finetune_trainer.runtime.signals import Stop

CALL: Final = "chat/completions"
CALLS_IN_FLIGHT: Final = 8
LOOK_SECONDS: Final = 1.0
"""Max time until a signal is noticed."""
QUIET_SECONDS: Final = 10.0
"""Time without a reply after which the calls in flight are given up, once no new call is made."""
DRAIN_SECONDS: Final = 25.0
"""Max time for the calls in flight to end; less than the 30 s between SIGTERM and SIGKILL."""


async def ask_all(
    api: JsonApi,
    questions: Iterable[Question],
    on_reply: Callable[[JudgeReply], None],
    *,
    stop: Stop,
    feed: Callable[[], None],
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Make all calls, or those in flight when `stop` is set or a call fails.

    Calls in flight are paid for, so they may end. The time for it counts from the last reply: a slow store
    that delays `on_reply` costs no replies that have arrived meanwhile.

    Args:
        api: the endpoint of the judge.
        questions: the calls to make.
        on_reply: gets each reply; an exception of it ends the calls.
        stop: set by a signal.
        feed: called at least once per second.
        clock: seconds of a clock that never goes back.

    Raises Unreachable if the endpoint cannot be used.
    """
    waiting, running = iter(questions), set[asyncio.Task[JudgeReply]]()
    failure: BaseException | None = None
    quiet, deadline = float("inf"), float("inf")
    async with api:
        while True:
            while len(running) < CALLS_IN_FLIGHT and failure is None and not stop.is_set():
                question = next(waiting, None)
                if question is None:
                    break
                running.add(asyncio.create_task(_ask(api, question)))
            if not running or clock() > min(quiet, deadline):
                break
            done, running = await asyncio.wait(
                running, timeout=LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            feed()
            for task in done:
                if (error := task.exception()) is None:
                    on_reply(task.result())
                else:
                    failure = failure or error
            if failure is not None or stop.is_set():
                now = clock()
                deadline = min(deadline, now + DRAIN_SECONDS)
                if done or quiet == float("inf"):
                    quiet = now + QUIET_SECONDS
    if failure is not None:
        raise failure


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
