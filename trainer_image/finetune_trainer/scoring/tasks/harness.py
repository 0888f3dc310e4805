# SPDX-License-Identifier: Apache-2.0
"""Tasks of lm-evaluation-harness: the library renders prompts and rates answers, with templates in a sandbox.

The library itself renders templates without a sandbox. This module is the only one that uses its tasks.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import datasets
from jinja2.sandbox import ImmutableSandboxedEnvironment
from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask
from lm_eval.defaults import DEFAULT_OTHER_SEED

from finetune_trainer.contract.own_metrics import EvaluationTask
from finetune_trainer.scoring.tasks.task_files import TaskFileError, TaskSource

SANDBOX: Final = ImmutableSandboxedEnvironment(
    undefined=utils.env.undefined, keep_trailing_newline=utils.env.keep_trailing_newline
)
SANDBOX.filters["regex_replace"] = utils.env.filters["regex_replace"]
utils.env = SANDBOX
# Its warnings are about defaults of its command.
logging.getLogger("lm_eval").setLevel(logging.ERROR)


@dataclass(frozen=True)
class TaskRequests:
    """Requests to a model. They are the same for all subjects."""

    kind: str
    """`loglikelihood` or `generate_until`, the method of the library's `LM`."""
    of_rows: Sequence[Sequence[Instance]] = field(repr=False)
    """The requests of each row."""

    @property
    def all(self) -> list[Instance]:
        """The requests of all rows, in their order."""
        return [request for requests in self.of_rows for request in requests]


class HarnessTask:
    """A task with its rows."""

    def __init__(self, source: TaskSource, wanted: EvaluationTask) -> None:
        """Check each row and render its prompt. Raises TaskFileError, with the field or the row.

        Args:
            source: the files.
            wanted: how the task is measured.
        """
        self.source = source
        self._metric, self._filter = _chosen(source, wanted.metric)
        fewshot = {} if wanted.num_fewshot is None else {"num_fewshot": wanted.num_fewshot}
        splits = {
            split: _run_guarded(f"rows of {split}", partial(datasets.Dataset.from_list, list(rows)))
            for split, rows in source.rows.items()
        }
        self._task: ConfigurableTask = _run_guarded(
            "its fields, tried with row 1",
            lambda: ConfigurableTask(
                config={**source.file.config(), **fewshot, "custom_dataset": lambda **_: splits}
            ),
        )
        self.rows = min(wanted.limit or len(splits[source.file.split]), len(splits[source.file.split]))
        """Number of rows that are measured."""
        self.requests = self._make_requests()

    @property
    def metric(self) -> str:
        """The measured metric, with its filter if the file names filters."""
        return self._metric if self.source.file.filter_list is None else f"{self._metric},{self._filter}"

    @property
    def num_fewshot(self) -> int:
        """Number of examples before each question."""
        return int(self._task.config.num_fewshot or 0)

    def values(self, responses: Sequence[Any]) -> dict[int, float]:
        """The value of each row by its number from 1, from the responses to all requests in their order."""
        instances = self.requests.all
        for instance, response in zip(instances, responses, strict=True):
            instance.resps, instance.filtered_resps = [response], {}
        self._task._instances = instances
        self._task.apply_filters()
        values = {}
        for number, of_row in enumerate(self.requests.of_rows, 1):
            answers = [instance.filtered_resps[self._filter] for instance in of_row]
            values[number] = float(self._task.process_results(of_row[0].doc, answers)[self._metric])
        return values

    def _make_requests(self) -> TaskRequests:
        task = self._task
        # Each evaluation draws the same examples, which are those of the library's command.
        task.set_fewshot_seed(DEFAULT_OTHER_SEED)
        of_rows = [
            _run_guarded(f"row {number}", partial(self._of_row, doc, number))
            for number, (_, doc) in enumerate(task.doc_iterator(limit=self.rows), 1)
        ]
        return TaskRequests(kind=of_rows[0][0].request_type, of_rows=of_rows)

    def _of_row(self, doc: Mapping[str, Any], number: int) -> list[Instance]:
        task = self._task
        context = task.fewshot_context(doc, self.num_fewshot, gen_prefix=task.doc_to_prefix(doc))
        made = task.construct_requests(doc, context, metadata=(task.config.task, number - 1, 1))
        requests = made if isinstance(made, list) else [made]
        if self.source.file.output_type == "multiple_choice":
            _check_choice(task, doc)
        return requests


def _check_choice(task: ConfigurableTask, doc: Mapping[str, Any]) -> None:
    """Raise ValueError if the correct answer is none of the choices, which the library counts as wrong."""
    choices = task.doc_to_choice(doc)
    if not all(choices):
        raise ValueError("doc_to_choice has an empty choice")
    target = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    for each in target if isinstance(target, list) else [target]:
        if each not in (range(len(choices)) if isinstance(each, int) else choices):
            raise ValueError(f"doc_to_target is {each!r}, which is none of the {len(choices)} choices")


def _chosen(source: TaskSource, wanted: str | None) -> tuple[str, str]:
    """The metric and the filter to measure. Raises TaskFileError."""
    file = source.file
    metric, _, pipeline = (wanted or "").partition(",")
    metric, pipeline = metric or file.metrics[0], pipeline or file.filters[0]
    for field_, name, known in (("metric", metric, file.metrics), ("filter", pipeline, file.filters)):
        if name not in known:
            raise TaskFileError(f"the task has no {field_} {name}; it has {', '.join(known)}")
    return metric, pipeline


def _run_guarded(place: str, action: Callable[[], Any]) -> Any:
    """Run code of the library on the user's files; any error is about these files."""
    try:
        return action()
    except Exception as error:
        text = " ".join(f"{error}".split()) or type(error).__name__
        raise TaskFileError(f"{place}: {text}") from error
