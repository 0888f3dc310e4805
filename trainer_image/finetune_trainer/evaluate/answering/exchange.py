# SPDX-License-Identifier: Apache-2.0
"""Files that the containers of an evaluation exchange: the prompts of each subject, and its answers.

A file begins with a header; every other line is a record as JSON.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field

from finetune_trainer.contract.environment import ANSWERS_MODELS_FOLDER, ANSWERS_PYTHON_FOLDER
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason, Subject
from finetune_trainer.evaluate.json_lines import JsonLine, JsonLinesHeader, to_content
from finetune_trainer.runtime.termination import StageFailure

FORMAT: Final = 1


class PromptsHeader(JsonLinesHeader):
    """Settings of all answers of one subject."""

    format: Annotated[int, Field(ge=1)] = FORMAT
    stop_ids: tuple[int, ...]
    """Tokens that end an answer."""
    temperature: float
    top_p: float


class RowPrompt(JsonLine):
    """The prompt of one row."""

    row: int
    ids: tuple[int, ...]
    max_tokens: int
    """1 or more."""
    seed: int | None = None
    """Seed of its answer; None for the most likely tokens."""


class AnswersHeader(JsonLinesHeader):
    """How the answers of one subject were generated."""

    format: Annotated[int, Field(ge=1)] = FORMAT
    version: str
    """Version of the engine."""
    seconds: float
    """Time of all answers, divided by their number."""


class RowAnswer(JsonLine):
    """The answer to one row."""

    row: int
    ids: tuple[int, ...]
    """Its tokens, without the one that ends it."""
    finish_reason: Literal["stop", "length"]


class AnswerProblem(JsonLine):
    """Why a subject has no answers."""

    reason: str
    message: str
    exit_code: int

    @classmethod
    def of(cls, failure: StageFailure) -> "AnswerProblem":
        """The problem as a failure of the stage."""
        return cls(reason=failure.reason, message=failure.message, exit_code=failure.exit_code)

    def failure(self) -> StageFailure:
        """The failure of the stage."""
        return StageFailure(FailureReason(self.reason), self.message, ExitCode(self.exit_code))


class Exchange:
    """The folder of the pod with these files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def models(self) -> Path:
        """Folder with a link to each folder of weights."""
        return self.folder / ANSWERS_MODELS_FOLDER

    @property
    def python(self) -> Path:
        """Folder of the package for the engine's image."""
        return self.folder / ANSWERS_PYTHON_FOLDER

    def write_prompts(self, subject: Subject, header: PromptsHeader, prompts: Sequence[RowPrompt]) -> None:
        """Write what to answer with the model of a subject. Raises OSError."""
        self._path("prompts", subject).write_bytes(to_content((header, *prompts)))

    def prompts(self, subject: Subject) -> tuple[PromptsHeader, list[RowPrompt]] | None:
        """What to answer; None if there is nothing. Raises OSError, ValueError."""
        lines = self._lines("prompts", subject)
        if lines is None:
            return None
        first, *others = lines
        return PromptsHeader.model_validate_json(first), list(map(RowPrompt.model_validate_json, others))

    def write_answers(self, subject: Subject, header: AnswersHeader, answers: Sequence[RowAnswer]) -> None:
        """Write the answers to all prompts of a subject. Raises OSError."""
        self._path("answers", subject).write_bytes(to_content((header, *answers)))

    def answers(self, subject: Subject) -> tuple[AnswersHeader, list[RowAnswer]] | None:
        """The answers; None if there are none. Raises OSError, ValueError."""
        lines = self._lines("answers", subject)
        if lines is None:
            return None
        first, *others = lines
        return AnswersHeader.model_validate_json(first), list(map(RowAnswer.model_validate_json, others))

    def write_problem(self, subject: Subject, failure: StageFailure) -> None:
        """Write why a subject has no answers. Raises OSError."""
        self._path("problem", subject).write_bytes(to_content((AnswerProblem.of(failure),)))

    def problem(self, subject: Subject) -> StageFailure | None:
        """Why a subject has no answers; None if nothing is known. Raises OSError, ValueError."""
        lines = self._lines("problem", subject)
        return None if lines is None else AnswerProblem.model_validate_json(lines[0]).failure()

    def _lines(self, kind: str, subject: Subject) -> list[bytes] | None:
        path = self._path(kind, subject)
        return path.read_bytes().splitlines() if path.exists() else None

    def _path(self, kind: str, subject: Subject) -> Path:
        return self.folder / f"{kind}-{subject.lower()}.jsonl"
