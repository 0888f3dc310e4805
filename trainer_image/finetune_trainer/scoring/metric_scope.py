# SPDX-License-Identifier: Apache-2.0
"""Finds what metrics compare answers with in addition to the correct answer: labels, a schema, a pattern.

It is found before rows are measured.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from transformers import PreTrainedTokenizerBase

from finetune_trainer.contract.evaluation import MetricOptions
from finetune_trainer.contract.metrics import METRICS, Metric, MetricNeed
from finetune_trainer.contract.vocabulary import FailureReason, SplitName
from finetune_trainer.rows import SPLIT_FILES, Row, read_rows
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.scoring.answer_formats import AnswerPattern, JSONSchema
from finetune_trainer.scoring.json_text import expected_calls, find_calls, has_json
from finetune_trainer.scoring.text_comparison import LabelSet
from finetune_trainer.tokens.chat_template import TemplateArguments
from finetune_trainer.tokens.encoding import RowEncoder
from finetune_trainer.tokens.reasoning import AnswerReader
from finetune_trainer.tokens.rendering import RowNotEncodable


@dataclass(frozen=True, slots=True)
class MetricScope:
    """What metrics compare answers with, in addition to the correct answer of the row."""

    labels: LabelSet | None = None
    """Labels of a classification; None if no metric needs them."""
    constrained_labels: bool = False
    """Whether the answer to a classification is the most likely label instead of the generated text."""
    json_schema: JSONSchema | None = None
    """Schema of the answers; None for any JSON."""
    pattern: AnswerPattern | None = None

    @property
    def choices(self) -> tuple[str, ...]:
        """The labels of which the most likely is the answer; none if the answer is generated."""
        return self.labels.names if self.constrained_labels and self.labels is not None else ()


MAX_LABELS: Final = 64
"""Max number of different answers that are labels, as in `MetricOptions.labels`."""
MIN_ROWS_PER_LABEL: Final = 2
"""Min average number of rows per different answer for the answers to be labels."""
REMOVE: Final = "remove the metric, also from evaluation.gates"


@dataclass(frozen=True)
class ScopeSource:
    """A split of a dataset, and the tokenizer with whose chat template its rows become prompts."""

    dataset: Path
    """Folder of the dataset."""
    split: SplitName
    tokenizer: PreTrainedTokenizerBase
    chat_template_kwargs: TemplateArguments

    def find(self, metrics: Iterable[Metric], options: MetricOptions) -> MetricScope:
        """Find what the metrics need in their options and in the rows.

        Raises StageFailure (INVALID_CONFIG), with the name of the field to change.
        """
        needing: dict[MetricNeed, Metric] = {}
        for metric in metrics:
            for need in METRICS[metric].needs:
                needing.setdefault(need, metric)
        if "json" in needing:
            self._check_any(needing["json"], "an answer in JSON", self._has_json)
        if "tools" in needing:
            self._check_any(needing["tools"], "an answer that calls a tool", _calls_tools)
            self._check_calls(needing["tools"])
        labels = self._labels(needing["labels"], options.labels) if "labels" in needing else None
        return MetricScope(
            labels=labels,
            constrained_labels=options.constrained_labels and labels is not None,
            json_schema=_schema(options),
            pattern=_pattern(needing["pattern"], options) if "pattern" in needing else None,
        )

    def _rows(self, split: SplitName | None = None) -> Iterator[tuple[int, Row]]:
        """The rows with a correct answer, with their numbers from 1."""
        for number, row in enumerate(read_rows(self.dataset / SPLIT_FILES[split or self.split]), 1):
            if row.label is not False:
                yield number, row

    def _answer(self, row: Row) -> str:
        """The correct answer as a client would receive it."""
        return AnswerReader(self.tokenizer).reference(row.output)

    def _has_json(self, row: Row) -> bool:
        return has_json(self._answer(row))

    def _check_any(self, metric: Metric, name: str, has: Callable[[Row], bool]) -> None:
        if not any(has(row) for _, row in self._rows()):
            _refuse(
                f"evaluation.metrics: {metric} needs {name}, but no {self.split} row has one; add such rows,"
                f" or {REMOVE}"
            )

    def _check_calls(self, metric: Metric) -> None:
        """Raise StageFailure if the calls of a row cannot be read where its own template has written them."""
        encoder = RowEncoder(self.tokenizer, self.chat_template_kwargs)
        reader = AnswerReader(self.tokenizer)
        for number, row in self._rows():
            if not _calls_tools(row):
                continue
            with suppress(RowNotEncodable):
                text = reader.content(*encoder.encode_answer(row))
                if find_calls(text) != expected_calls(row.messages[-1].tool_calls):
                    _refuse(
                        f"evaluation.metrics: {metric} cannot read the calls of {self.split} row {number} in"
                        " the form in which the base model's chat template writes them, because it is not"
                        f" JSON with a name and arguments; {REMOVE}"
                    )

    def _labels(self, metric: Metric, given: Sequence[str]) -> LabelSet:
        names = tuple(given) or self._found_labels(metric)
        for number, row in self._rows():
            answer = self._answer(row)
            if answer not in names or not answer:
                _refuse(
                    f"evaluation.options.labels: the answer of {self.split} row {number} is not one of the"
                    f" labels that {metric} needs; add it, or correct the row"
                )
        return LabelSet(names)

    def _found_labels(self, metric: Metric) -> tuple[str, ...]:
        """The different answers of all splits, in order."""
        found: set[str] = set()
        rows = 0
        for split in SPLIT_FILES:
            for _, row in self._rows(split):
                rows += 1
                if len(found) <= MAX_LABELS:
                    found.add(self._answer(row))
        if len(found) > MAX_LABELS or len(found) * MIN_ROWS_PER_LABEL > rows:
            many = f"more than {MAX_LABELS}" if len(found) > MAX_LABELS else str(len(found))
            _refuse(
                f"evaluation.options.labels: {metric} needs labels, but the {rows} rows of the dataset have"
                f" {many} different answers; set the labels, or {REMOVE}"
            )
        return tuple(sorted(found))


def _calls_tools(row: Row) -> bool:
    return row.messages[-1].tool_calls is not None


def _schema(options: MetricOptions) -> JSONSchema | None:
    if options.json_schema is None:
        return None
    try:
        return JSONSchema(options.json_schema)
    except ValueError as error:
        _refuse(f"evaluation.options.jsonSchema: {error}; correct it")


def _pattern(metric: Metric, options: MetricOptions) -> AnswerPattern:
    if options.pattern is None:
        _refuse(f"evaluation.options.pattern: {metric} needs a pattern; set it, or {REMOVE}")
    try:
        return AnswerPattern(options.pattern)
    except ValueError as error:
        _refuse(f"evaluation.options.pattern: {error}; correct it")


def _refuse(message: str) -> NoReturn:
    raise StageFailure(FailureReason.INVALID_CONFIG, message)
