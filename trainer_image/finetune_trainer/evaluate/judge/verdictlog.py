"""The replies of a judge: a file of the run, so that no process repeats a call that was paid for.

The first line is a header with the prompt. Every other line is a `JudgeReply` as JSON.
"""

import logging
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from finetune_trainer.contract.judge import Judge
from finetune_trainer.evaluate.judge.prompt import Preference
from finetune_trainer.evaluate.judge.questions import Question
from finetune_trainer.runtime.failure import StageFailure
from finetune_trainer.runtime.progressmeter import Interval
from finetune_trainer.store import RunFolder

FORMAT: Final = 1
FLUSH_SECONDS: Final = 5.0
"""A killed process loses the replies that it received in this time."""

logger = logging.getLogger(__name__)


class _JudgeLine(BaseModel):
    model_config = ConfigDict(frozen=True, alias_generator=to_camel, populate_by_name=True)

    def to_line(self) -> str:
        return f"{self.model_dump_json(by_alias=True, exclude_none=True)}\n"


class JudgeReply(_JudgeLine):
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


class _VerdictHeader(_JudgeLine):
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
            endpoint=judge.endpoint,
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
            lines = (self._header, *self._replies.values())
            self._folder.write(self._file, "".join(line.to_line() for line in lines).encode())
            self._saved = len(self._replies)

    def _try_to_save(self) -> None:
        try:
            self.save()
        except StageFailure as failure:
            logger.warning("replies of a judge are saved later: %s", failure.message)

    def _read(self) -> dict[str, JudgeReply]:
        content = self._folder.read(self._file)
        if content is None:
            return {}
        try:
            first, *lines = content.splitlines()
            if _VerdictHeader.model_validate_json(first).format != FORMAT:
                return {}
            replies = [JudgeReply.model_validate_json(line) for line in lines]
        except (ValueError, ValidationError) as error:
            logger.warning("%s is damaged and ignored: %s", self.uri, error)
            return {}
        return {reply.digest: reply for reply in replies}
