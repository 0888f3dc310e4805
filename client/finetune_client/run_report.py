# SPDX-License-Identifier: Apache-2.0
"""What a run achieved: scores and gates, findings, its prediction and what it took, its cost, its pages."""

from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from finetune_client.backend import Object
from finetune_client.tables import evaluation, printable
from finetune_operator.api.dataset import Dataset
from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.api.meta import Condition, Model
from finetune_operator.api.stage_status import LOST_CAUSES, RecordedCost
from finetune_operator.reconcile.verdicts import few_rows_warning
from finetune_operator.status.conditions import present_state
from finetune_operator.status.prediction import find_warning, predicted_column, took_column


@dataclass(frozen=True, slots=True)
class RunFinding:
    """Something that a reader of the scores should know."""

    about: str
    message: str
    blocks: bool = False
    """Whether it blocks the promotion."""


@dataclass(frozen=True, slots=True)
class RunReport:
    """A run, and the Dataset that it names if that exists."""

    job: FineTuneJob
    dataset: Dataset | None

    @property
    def state(self) -> Condition | None:
        """The condition that says where the run is: how it ended, or what it does."""
        return present_state(self.job.status.conditions)

    @property
    def findings(self) -> tuple[RunFinding, ...]:
        """Findings about the weights, the rows and the training, those that block the promotion first."""
        found = sorted(self._findings(), key=lambda each: not each.blocks)
        return tuple(found)

    def _findings(self) -> Iterator[RunFinding]:
        yield from self._about_evaluation()
        yield from self._about_rows()
        status = self.job.status
        warning = find_warning(status.prediction) if status.prediction is not None else None
        if warning is not None and status.training is None:
            yield RunFinding("prediction", warning)
        for advice in status.advice:
            yield RunFinding("advice", advice.message)

    def _about_evaluation(self) -> Iterator[RunFinding]:
        measured, settings = self.job.status.evaluation, self.job.spec.evaluation
        if measured is None:
            return
        for each in measured.findings or ():
            yield RunFinding(each.check, each.message, each.veto)
        few = few_rows_warning(settings.gates, measured.scores) if settings is not None else None
        if few is not None:
            yield RunFinding("few rows", few)
        if measured.untested_answers:
            yield RunFinding(
                "untested answers",
                f"{measured.untested_answers} distinct answers of the training rows are in no row of the"
                f" {measured.split} split: the scores do not cover them",
            )

    def _about_rows(self) -> Iterator[RunFinding]:
        status = self.job.status
        if self.dataset is not None:
            rows = self.dataset.status
            about = f"Dataset {self.dataset.name}"
            if status.resolved.dataset_version not in {None, rows.latest_version}:
                about += ", latest version"
            shown = (*rows.problems, *rows.warnings)
            total = (rows.problem_count or 0) + (rows.warning_count or 0)
            for message in shown:
                yield RunFinding(about, message)
            if total > len(shown):
                yield RunFinding(about, f"{total} problems and warnings in all")
        for message in status.problems:
            yield RunFinding("rows", message)
        if status.dropped_rows is not None:
            dropped = status.dropped_rows
            message = f"{dropped.rows} rows ({dropped.percent:g} %) are too long and were not used"
            yield RunFinding("rows", message)
        if status.leaked_rows:
            message = f"{status.leaked_rows} training rows repeat rows of the evaluation: left out"
            yield RunFinding("rows", message)

    @property
    def pages(self) -> dict[str, str]:
        """URIs of the HTML pages in the store, by what they are about."""
        status = self.job.status
        uris = {
            "evaluation": status.evaluation.report_uri if status.evaluation else None,
            "training": status.training.report_uri if status.training else None,
            "rows": self.dataset.status.report if self.dataset else None,
        }
        return {name: uri for name, uri in uris.items() if uri}

    def to_json(self) -> Object:
        """The report as JSON types; parts that the run does not have yet are null."""
        status = self.job.status
        state = self.state

        def plain(part: Model | None) -> Object | None:
            return None if part is None else part.model_dump(mode="json", by_alias=True, exclude_none=True)

        return {
            "run": self.job.name,
            "modelLine": self.job.spec.model_line,
            "state": state and {"reason": state.reason, "message": state.message},
            "evaluation": plain(status.evaluation),
            "findings": [
                {"about": each.about, "message": each.message, "blocks": each.blocks}
                for each in self.findings
            ],
            "training": plain(status.training),
            "prediction": plain(status.prediction),
            "cost": plain(status.cost),
            "pages": self.pages,
        }

    def render(self) -> RenderableType:
        """The report for a person."""
        status = self.job.status
        state = self.state
        title = f"[bold]FineTuneJob {self.job.name}[/]  model line {self.job.spec.model_line}"
        parts: list[RenderableType] = [Text.from_markup(title)]
        if state is not None:
            parts.append(
                Text(printable(f"{state.reason}: {state.message}" if state.message else state.reason))
            )
        if status.evaluation is not None:
            parts += ["", evaluation(status.evaluation)]
        if self.findings:
            parts += ["", Text("Findings", style="bold"), _findings_table(self.findings)]
        facts = list(self._facts())
        if facts:
            parts += ["", _grid(facts)]
        if self.pages:
            parts += ["", Text("Pages", style="bold"), _grid(list(self.pages.items()))]
        return Group(*parts)

    def _facts(self) -> Iterator[tuple[str, str]]:
        status = self.job.status
        if status.prediction is not None:
            yield "predicted", predicted_column(status.prediction)
            yield "measured", took_column(status.prediction) or "training has not ended"
        if status.training is not None:
            training = status.training
            losses = [f"{training.steps} steps"]
            if training.train_loss is not None:
                losses.append(f"training loss {training.train_loss:.4g}")
            if training.validation_loss is not None:
                losses.append(f"validation loss {training.validation_loss:.4g}")
            yield "training", ", ".join(losses)
        if status.cost is not None:
            yield "cost", cost_text(status.cost)
            for lost in status.cost.lost or ():
                yield (
                    f"lost: {lost.cause}",
                    f"{lost.device_seconds:.0f} device seconds ({LOST_CAUSES[lost.cause]})",
                )


def cost_text(cost: RecordedCost) -> str:
    """Price and device time, such as `EUR 0.15 (215 device seconds)`."""
    seconds = f"{cost.device_seconds:,.0f} device seconds"
    if cost.amount is None:
        return seconds
    return f"{cost.currency or ''} {cost.amount:,.2f} ({seconds})".lstrip()


def _grid(rows: list[tuple[str, str]]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(name, Text(printable(value)))
    return grid


def _findings_table(findings: tuple[RunFinding, ...]) -> Padding:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for each in findings:
        style = "red" if each.blocks else "yellow"
        about = f"{each.about}, blocks the promotion" if each.blocks else each.about
        grid.add_row(f"[{style}]{escape(printable(about))}[/]", Text(printable(each.message)))
    return Padding(grid, 0)
