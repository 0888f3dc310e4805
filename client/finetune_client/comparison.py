# SPDX-License-Identifier: Apache-2.0
"""Runs side by side: the fields in which they differ, their scores and their cost."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.jupyter import JupyterMixin
from rich.table import Table
from rich.text import Text

from finetune_client.backend import Object
from finetune_client.run_report import cost_text
from finetune_client.tables import printable
from finetune_operator.api.evaluation import GateResult, Score
from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.status.progress import find_score

ABSENT: Final = "-"
NOT_COMPARED: Final = frozenset({"spec.suspend", "spec.cancel", "spec.childrenTTLSeconds"})
"""Fields that change nothing about the result of a run."""
COMPARED_RESULTS: Final = ("datasetVersion", "baseModelDigest", "hyperparameters", "lora", "preference")
"""Fields of `status.resolved` that show what a run chose where its spec leaves it open."""


@dataclass(frozen=True, slots=True)
class PairedGain:
    """A gain that a gate of a run measured over the Checkpoint of another one, on the same rows."""

    run: str
    over: str
    gate: GateResult

    def __str__(self) -> str:
        gate = self.gate
        bounds = ""
        if gate.gain_low is not None and gate.gain_high is not None:
            bounds = f" ({gate.gain_low:.4g} to {gate.gain_high:.4g} at confidence {gate.confidence})"
        return f"{gate.metric}: gain {gate.gain:.4g} of {self.run} over {self.over}{bounds}"


@dataclass(frozen=True, slots=True)
class RunComparison(JupyterMixin):
    """Two or more runs, in the order in which they were named. A notebook shows it as `render` does."""

    jobs: tuple[FineTuneJob, ...]

    @property
    def differences(self) -> dict[str, tuple[str, ...]]:
        """The fields that differ, with defaults, by path: one value per run."""
        flat = [_fields(job) for job in self.jobs]
        paths = dict.fromkeys(path for fields in flat for path in fields)
        rows = {path: tuple(fields.get(path, ABSENT) for fields in flat) for path in paths}
        return {
            path: values for path, values in rows.items() if len(set(values)) > 1 and path not in NOT_COMPARED
        }

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics of all runs, in the order of their scores."""
        scores = (score for job in self.jobs for score in _scores(job))
        return tuple(dict.fromkeys(score.metric for score in scores if score.subject == "Tuned"))

    @property
    def has_other_rows(self) -> bool:
        """Whether the runs were evaluated on different rows, so that their scores cannot be compared."""
        measured = {
            (each.dataset_digest or each.dataset_version, each.split)
            for job in self.jobs
            if (each := job.status.evaluation) is not None
        }
        counts = ({score.rows for job in self.jobs if (score := _tuned(job, each))} for each in self.metrics)
        return len(measured) > 1 or any(len(rows) > 1 for rows in counts)

    @property
    def paired(self) -> tuple[PairedGain, ...]:
        """Gains that the statuses hold: of a run over another one that was the champion at that time."""
        by_checkpoint = {
            checkpoint.name: job.name for job in self.jobs for checkpoint in job.status.checkpoints
        }
        return tuple(
            PairedGain(job.name, by_checkpoint[evaluation.live], gate)
            for job in self.jobs
            if (evaluation := job.status.evaluation) is not None and evaluation.live in by_checkpoint
            for gate in evaluation.gates
            if gate.over == "Live" and gate.gain is not None
        )

    def to_json(self) -> Object:
        """The comparison as JSON types."""
        return {
            "runs": [job.name for job in self.jobs],
            "differences": {path: list(values) for path, values in self.differences.items()},
            "scores": {
                metric: [
                    score and score.model_dump(mode="json", by_alias=True, exclude_none=True)
                    for score in (_tuned(job, metric) for job in self.jobs)
                ]
                for metric in self.metrics
            },
            "sameRows": not self.has_other_rows,
            "pairedGains": [
                {"run": each.run, "over": each.over, **each.gate.model_dump(mode="json", by_alias=True)}
                for each in self.paired
            ],
            "costs": [
                job.status.cost and job.status.cost.model_dump(mode="json", by_alias=True, exclude_none=True)
                for job in self.jobs
            ],
        }

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.render()

    def render(self) -> RenderableType:
        """The comparison for a person."""
        parts: list[RenderableType] = []
        if self.differences:
            parts.append(self._table("Fields that differ, with defaults", self.differences.items()))
        else:
            parts.append(Text("The specs do not differ."))
        parts += ["", self._table("Scores with 95 % intervals, and cost", self._results())]
        if self.has_other_rows:
            parts.append(
                Text(
                    "The runs were evaluated on different rows: their scores cannot be compared.",
                    style="yellow",
                )
            )
        parts += [Text(printable(str(each))) for each in self.paired]
        if self.metrics and not self.paired:
            parts.append(
                Text(
                    "Each interval is of one run alone. No run was measured against another one on the same"
                    " rows; a gate over: Live does that.",
                    style="dim",
                )
            )
        return Group(*parts)

    def _results(self) -> Iterator[tuple[str, Sequence[str]]]:
        for metric in self.metrics:
            yield metric, [_score_text(_tuned(job, metric)) for job in self.jobs]
            if any(_base(job, metric) for job in self.jobs):
                yield f"{metric}, base", [_score_text(_base(job, metric)) for job in self.jobs]
        yield "verdict", [_verdict(job) for job in self.jobs]
        yield "cost", [cost_text(job.status.cost) if job.status.cost else ABSENT for job in self.jobs]

    def _table(self, title: str, rows: "Any") -> Table:
        table = Table(title=title, title_justify="left", title_style="bold")
        table.add_column("")
        for job in self.jobs:
            table.add_column(job.name, overflow="fold")
        for name, values in rows:
            table.add_row(name, *(Text(printable(value)) for value in values))
        return table


def _fields(job: FineTuneJob) -> dict[str, str]:
    """The values of the spec and of what the run chose, by path."""
    spec = job.spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    resolved = job.status.resolved.model_dump(mode="json", by_alias=True, exclude_none=True)
    chosen = {name: resolved[name] for name in COMPARED_RESULTS if name in resolved}
    return dict((*_flatten("spec", spec), *_flatten("chosen", chosen)))


def _flatten(path: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for name, part in value.items():
            yield from _flatten(f"{path}.{name}", part)
    else:
        yield path, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _scores(job: FineTuneJob) -> tuple[Score, ...]:
    return job.status.evaluation.scores if job.status.evaluation is not None else ()


def _tuned(job: FineTuneJob, metric: str) -> Score | None:
    return find_score(_scores(job), metric, "Tuned")


def _base(job: FineTuneJob, metric: str) -> Score | None:
    return find_score(_scores(job), metric, "Base")


def _score_text(score: Score | None) -> str:
    if score is None:
        return ABSENT
    interval = (
        f" ({score.low:.3f}–{score.high:.3f})" if score.low is not None and score.high is not None else ""
    )
    return f"{score.value:.4g}{interval}, {score.rows} rows"


def _verdict(job: FineTuneJob) -> str:
    return job.status.evaluation.verdict if job.status.evaluation is not None else ABSENT
