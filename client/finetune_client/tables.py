# SPDX-License-Identifier: Apache-2.0
"""Tables of a run's scores, records and answers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, get_args

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.dataset_version import DatasetVersion
from finetune_operator.api.evaluation import EvaluationStatus, Score
from finetune_operator.status.conditions import CONTROLS
from finetune_operator.status.progress import find_score
from finetune_trainer.contract.vocabulary import Subject

if TYPE_CHECKING:
    # It takes a second to import, which only an endpoint needs.
    from finetune_client.endpoint import ComparedAnswers

UNBROKEN: Final = frozenset({"name", "digest", "expected"})
"""Columns without line breaks, so that their values can be copied from the terminal."""
DIGEST_LENGTH: Final = len("sha256:") + 12
PLAIN_WIDTH: Final = 110
"""Width in characters when output is not a terminal."""


def printable(text: str) -> str:
    """The text with a replacement for each character that controls a terminal."""
    return CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text)


def console() -> Console:
    """A console without highlighting, of PLAIN_WIDTH when output is not a terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PLAIN_WIDTH)


def evaluation(status: EvaluationStatus) -> Table:
    """Scores of each model on the held-out rows with their 95 % intervals, and the gates."""
    measured = {score.subject for score in status.scores}
    subjects = [subject for subject in reversed(get_args(Subject)) if subject in measured]
    title = f"Evaluation on the {status.split} split, with 95 % intervals"
    table = _table(title, "metric", *(subject.lower() for subject in subjects), "gates")
    for metric in dict.fromkeys(score.metric for score in status.scores):
        gates = [gate for gate in status.gates if gate.metric == metric]
        table.add_row(
            f"{metric} ({_rows(status.scores, metric)} rows)",
            *(_value(status.scores, metric, subject) for subject in subjects),
            "\n".join(f"{_verdict(gate.verdict)}: {escape(gate.message)}" for gate in gates),
        )
    return table


def records(versions: Sequence[DatasetVersion], checkpoints: Sequence[Checkpoint]) -> Table:
    """DatasetVersions and Checkpoints with their digests."""
    table = _table("Records", "kind", "name", "content", "digest")
    for version in versions:
        splits = " + ".join(str(split.rows) for split in version.spec.splits)
        table.add_row("DatasetVersion", version.name, f"{splits} rows", _short(version.spec.digest))
    for checkpoint in checkpoints:
        spec = checkpoint.spec
        promoted = ", promoted" if checkpoint.status.promoted_at else ""
        content = f"{spec.type}, step {spec.step}{promoted}"
        table.add_row("Checkpoint", checkpoint.name, content, _short(spec.digest))
    return table


def answers(title: str, answered: "Sequence[ComparedAnswers]") -> Table:
    """Questions with the answers of both models side by side."""
    table = _table(title, "question", "base", "tuned", "expected")
    table.show_lines = True
    for each in answered:
        good = each.tuned == each.expected
        table.add_row(
            escape(each.prompt),
            Text(each.base or "(nothing)", style="dim"),
            Text(each.tuned, style="green" if good else "red"),
            each.expected,
        )
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column in UNBROKEN)
    return table


def _short(digest: str) -> str:
    """The first characters of a digest; `kubectl get -o yaml` shows all."""
    return f"{digest[:DIGEST_LENGTH]}…"


def _value(scores: Sequence[Score], metric: str, subject: str) -> str:
    score = find_score(scores, metric, subject)
    if score is None:
        return "-"
    if score.low is None or score.high is None:
        return f"{score.value:.3f}"
    return f"{score.value:.3f}\n{score.low:.2f}–{score.high:.2f}"


def _rows(scores: Sequence[Score], metric: str) -> int:
    return next((score.rows for score in scores if score.metric == metric), 0)


def _verdict(verdict: str) -> str:
    color = {"Passed": "green", "Failed": "red"}.get(verdict, "yellow")
    return f"[{color}]{verdict}[/]"
