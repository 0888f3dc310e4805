# SPDX-License-Identifier: Apache-2.0
"""The replies of a judge: a file of the run, so that no process repeats a call that was paid for.

The first line is a header with the prompt. Every other line is a `JudgeReply` as JSON.
"""

import logging
from typing import Annotated, Final, Literal

from pydantic import Field

from finetune_trainer.contract.own_metrics import Judge
from finetune_trainer.evaluate.jsonlines import JsonLine, JsonLinesHeader, read_lines, to_content
from finetune_trainer.evaluate.judge.prompt import Preference
from finetune_trainer.evaluate.judge.questions import Question
from finetune_trainer.runtime.progress import Interval
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.store import RunFolder

FORMAT: Final = 1
FLUSH_SECONDS: Final = 5.0
"""A killed process loses the replies that it received in this time."""

logger = logging.getLogger(__name__)


class JudgeReply(JsonLine):
    """What a judge replied to one call."""

    digest: str
    """Of the call."""
    row: int
    """Number of the row in the evaluated split, from 1."""
    tuned: Literal["A", "B"]
    """Place of the answer of the tuned model."""
    better: Preference | None = None
    """None: the reply could not be read."""
    reason: str = ""
    """Of the judge, or why there is no verdict."""


class _VerdictHeader(JsonLinesHeader):
    format: Annotated[int, Field(ge=1)] = FORMAT
    judge: str
    endpoint: str
    model: str
    against: str
    prompt: str
    """System turn of each call."""


class VerdictLog:
    """The replies of one judge, in the run's folder."""

    def __init__(self, folder: RunFolder, judge: Judge, system: str) -> None:
        """Read the replies that earlier processes received. Raises StageFailure (STORE_UNAVAILABLE)."""
        self._folder = folder
        self._file = f"judge-{judge.name}.jsonl"
        self._header = _VerdictHeader(
            judge=judge.name,
            endpoint=judge.endpoint or "",
            model=judge.model,
            against=judge.against,
            prompt=system,
        )
        self._interval = Interval(FLUSH_SECONDS)
        self._replies = self._read()
        self._saved = len(self._replies)

    @property
    def uri(self) -> str:
        """Location of the file."""
        return f"{self._folder.uri}/{self._file}"

    def find(self, question: Question) -> JudgeReply | None:
        """The reply to a call; None if it was not made."""
        return self._replies.get(question.digest)

    def add(self, reply: JudgeReply) -> None:
        """Keep a reply; saves now and then."""
        self._replies[reply.digest] = reply
        if self._interval.passed():
            self._try_to_save()

    def save(self) -> None:
        """Save all replies. Raises StageFailure (STORE_UNAVAILABLE)."""
        if len(self._replies) > self._saved:
            self._folder.write(self._file, to_content((self._header, *self._replies.values())))
            self._saved = len(self._replies)

    def _try_to_save(self) -> None:
        try:
            self.save()
        except StageFailure as failure:
            logger.warning("replies of a judge are saved later: %s", failure.message)

    def _read(self) -> dict[str, JudgeReply]:
        found = read_lines(self._folder, self._file, _VerdictHeader, JudgeReply, FORMAT)
        _, replies = found or (None, [])
        return {reply.digest: reply for reply in replies}
