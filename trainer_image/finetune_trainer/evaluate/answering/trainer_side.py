# SPDX-License-Identifier: Apache-2.0
"""The trainer's side of an evaluation that a serving engine answers: writes prompts, and reads answers."""

import logging
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

from transformers import PreTrainedTokenizerBase

import finetune_trainer
from finetune_trainer.contract.configs import EvaluateConfig, PromptsConfig
from finetune_trainer.contract.environment import BASE_FOLDER, LIVE_BASE_FOLDER, LIVE_FOLDER, TUNED_FOLDER
from finetune_trainer.contract.evaluation import CheckFinding, EngineVersion
from finetune_trainer.contract.references import ArtifactRef
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason, Subject
from finetune_trainer.evaluate.answering.exchange import Exchange, PromptsHeader, RowPrompt
from finetune_trainer.evaluate.examples import AnswerBudget
from finetune_trainer.evaluate.measured_model import AnswerRequest, GeneratedAnswer, row_seed
from finetune_trainer.evaluate.measurement_log import PredictionLog
from finetune_trainer.evaluate.subjects.opening import OPTIONAL, EvaluatedSubject, SubjectOpener, Weights
from finetune_trainer.model.loading import read_context_length, read_generation_config
from finetune_trainer.rows import SPLIT_FILES, load_rows
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.store import open_store
from finetune_trainer.tokens.chat_template import stop_token_ids
from finetune_trainer.tokens.reasoning import AnswerReader

FOLDERS: Final[dict[Subject, tuple[str, str]]] = {
    "Tuned": (BASE_FOLDER, TUNED_FOLDER),
    "Live": (LIVE_BASE_FOLDER, LIVE_FOLDER),
}
"""Names of the folders with the base model and the weights; other subjects have a base model only."""

logger = logging.getLogger(__name__)


def run(config: PromptsConfig) -> None:
    """Write the prompts of the rows that are not measured yet, and the package for the engine's image.

    A subject that cannot be opened gets no prompts: the trainer, which runs later, fails at the same place
    and reports it.
    """
    evaluate = config.evaluate
    if evaluate.answer_engine is None:
        raise StageFailure(FailureReason.INVALID_CONFIG, "answerEngine: the trainer answers itself")
    exchange = Exchange(Path(evaluate.answer_engine.folder))
    package = Path(finetune_trainer.__file__).parent
    shutil.copytree(
        package,
        exchange.python / package.name,
        ignore=shutil.ignore_patterns("__pycache__"),
        dirs_exist_ok=True,
    )
    try:
        _write(evaluate, exchange)
    except StageFailure as failure:
        logger.warning("there is nothing to answer: %s", failure.message)
    except Exception:
        logger.exception("there is nothing to answer, because of an unexpected error")


def _write(config: EvaluateConfig, exchange: Exchange) -> None:
    store = open_store(config.store)
    data = store.artifact(ArtifactRef(kind="datasets", digest=config.dataset), verify=True)
    rows = load_rows(data / SPLIT_FILES[config.split])
    exchange.models.mkdir(exist_ok=True)
    with store.run_folder(config.run, config.stage) as folder:
        opener = SubjectOpener(config, store, data, rows, folder)
        log = PredictionLog(folder, config)
        for name in config.subjects:
            try:
                subject = opener.open(name)
                prompts = _prompts(config, subject, measured=log.of(name).keys())
                header = _header(config, subject)
            except StageFailure as failure:
                logger.warning("%s: %s", name, failure.message)
                continue
            if prompts:
                _link(exchange.models, name, subject.weights)
                exchange.write_prompts(name, header, prompts)
            logger.info("%s: %d rows to answer", name, len(prompts))


def _header(config: EvaluateConfig, subject: EvaluatedSubject) -> PromptsHeader:
    generation = read_generation_config(subject.weights.base)
    return PromptsHeader(
        stop_ids=tuple(sorted(subject.stop_ids | {*stop_token_ids(subject.tokenizer, generation)})),
        temperature=config.generation.temperature,
        top_p=config.generation.top_p,
    )


def _prompts(config: EvaluateConfig, subject: EvaluatedSubject, measured: Collection[int]) -> list[RowPrompt]:
    """The prompts of the rows that are not measured; none of rows without room for an answer."""
    budget, context = AnswerBudget.of(config), read_context_length(subject.weights.base)
    return [
        RowPrompt(
            row=example.row,
            ids=tuple(example.prompt),
            max_tokens=tokens,
            seed=row_seed(config.generation, example.row),
        )
        for example in subject.examples
        if example.row not in measured and (tokens := budget.of_row(example, context)) > 0
    ]


def _link(models: Path, subject: Subject, weights: Weights) -> None:
    """Link the folders of the weights, which the engine reads where they are."""
    base, own = FOLDERS.get(subject, (BASE_FOLDER, BASE_FOLDER))
    folders = {own: weights.base} if weights.adapter is None else {base: weights.base, own: weights.adapter}
    for name, folder in folders.items():
        link = models / name
        link.unlink(missing_ok=True)
        link.symlink_to(folder, target_is_directory=True)


CHECK: Final = "AnswerEngine"


class RecordedAnswers:
    """The answers of one subject, as the trainer would have generated them."""

    def __init__(self, exchange: Exchange, subject: Subject, tokenizer: PreTrainedTokenizerBase) -> None:
        """Read the answers.

        Raises StageFailure: why the engine has not answered. For a subject without which the evaluation
        continues, it is final, so that an engine that cannot load the champion does not fail the evaluation.
        """
        problem = exchange.problem(subject)
        if problem is not None:
            raise StageFailure(problem.reason, problem.message) if subject in OPTIONAL else problem
        found = exchange.answers(subject)
        self._subject = subject
        self._reader = AnswerReader(tokenizer)
        self._seconds = None if found is None else found[0].seconds
        self._answers = {} if found is None else {answer.row: answer for answer in found[1]}

    def generate(self, requests: Sequence[AnswerRequest]) -> list[GeneratedAnswer]:
        """Return the answer to each request. Raises StageFailure (INTERNAL) if one is missing."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: AnswerRequest) -> GeneratedAnswer:
        if request.max_tokens <= 0:
            return GeneratedAnswer("", 0, "length", seconds=self._seconds)
        answer = self._answers.get(request.row)
        if answer is None:
            raise StageFailure(
                FailureReason.INTERNAL,
                f"the engine has no answer of the model {self._subject} to row {request.row}: the logs of the"
                " containers prompts and answers of the pod have the cause",
                ExitCode.INTERNAL,
            )
        ids = list(answer.ids)
        text = self._reader.content(request.prompt, ids)
        return GeneratedAnswer(text, len(ids), answer.finish_reason, seconds=self._seconds)


def open_exchange(config: EvaluateConfig) -> Exchange | None:
    """The folder with the answers; None if the trainer generates them."""
    engine = config.answer_engine
    return Exchange(Path(engine.folder)) if engine is not None and engine.is_separate else None


def read_engine_version(config: EvaluateConfig) -> str | None:
    """Version of the engine that has answered in this pod; None if it had nothing to answer."""
    exchange = open_exchange(config)
    if exchange is None:
        return None
    found = (exchange.answers(subject) for subject in config.subjects)
    return next((answers[0].version for answers in found if answers is not None), None)


def engine_version(config: EvaluateConfig, version: str | None) -> EngineVersion | None:
    """The engine of the answers for the result; None if it is the trainer.

    Args:
        config: config of the stage.
        version: version of the engine, if the predictions record one.
    """
    engine = config.answer_engine
    if engine is None or not engine.is_separate:
        return None
    return EngineVersion(name=engine.name, version=version or "unknown")


def report_unsupported_engine(config: EvaluateConfig) -> tuple[CheckFinding, ...]:
    """Why the trainer has answered although the ComputeProfile has another engine."""
    engine = config.answer_engine
    if engine is None or not engine.unsupported:
        return ()
    return (CheckFinding(check=CHECK, veto=False, message=engine.unsupported),)
