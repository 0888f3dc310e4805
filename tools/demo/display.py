# SPDX-License-Identifier: Apache-2.0
"""Show a run: redrawn in place on a terminal, otherwise one line per change."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from tools.demo.runstate import DemoEvent, DemoStatus, Stage, duration

MARKS: Final = {"done": "[green]✔[/]", "running": "[yellow]▶[/]", "waiting": "[dim]·[/]"}
MAX_EVENTS: Final = 5
PROGRESS_SECONDS: Final = 10.0
"""Minimum time between two progress lines when output is not a terminal."""


class View(Protocol):
    """Shows the states of a run during a block."""

    def show(self, status: DemoStatus) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def create_view(console: Console, extra: Callable[[], str]) -> View:
    """The view for the console; `extra` returns an additional line, or an empty text."""
    return LiveView(console, extra) if console.is_terminal else LineView(console, extra)


class LiveView:
    """Redraws stages and the newest events; the last state stays on the terminal."""

    def __init__(self, console: Console, extra: Callable[[], str]) -> None:
        self._console = console
        self._extra = extra
        self._live = Live(console=console)

    def show(self, status: DemoStatus) -> None:
        self._live.update(render(status, self._extra()))

    def __enter__(self) -> Self:
        # A Live that has ended cannot be started again.
        self._live = Live(console=self._console, refresh_per_second=4)
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)


class LineView:
    """Prints one line per event and per change of a stage, and progress every PROGRESS_SECONDS."""

    def __init__(self, console: Console, extra: Callable[[], str]) -> None:
        self._console = console
        self._extra = extra
        self._printed_events: set[str] = set()
        self._states: dict[str, str] = {}
        self._progress = ""
        self._next_progress = 0.0

    def show(self, status: DemoStatus) -> None:
        for event in status.events:
            if event.key not in self._printed_events:
                self._printed_events.add(event.key)
                self._print(_event(event))
        for stage in status.stages:
            if stage.state != "waiting" and self._states.get(stage.name) != stage.state:
                self._states[stage.name] = stage.state
                self._print(_stage(stage))
        running = next((stage for stage in status.stages if stage.state == "running"), None)
        detail = "  ".join(part for part in (running.detail if running else "", self._extra()) if part)
        if running and detail and detail != self._progress and time.monotonic() >= self._next_progress:
            self._progress, self._next_progress = detail, time.monotonic() + PROGRESS_SECONDS
            self._print(f"{running.name}: {escape(detail)}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def _print(self, markup: str) -> None:
        self._console.print(f"   {markup}", soft_wrap=True)


def render(status: DemoStatus, extra: str) -> RenderableType:
    """Title, stages and newest events of a run."""
    stages = Table.grid(padding=(0, 1))
    for _ in range(4):
        stages.add_column()
    for stage in status.stages:
        time_spent = "" if stage.seconds is None else duration(stage.seconds)
        stages.add_row(f"  {MARKS[stage.state]}", stage.name, f"[dim]{time_spent}[/]", escape(stage.detail))
    created = status.job.metadata.creation_timestamp or status.taken_at
    age = duration((status.taken_at - created).total_seconds())
    title = Text.from_markup(
        f"   [bold]FineTuneJob {status.job.name}[/]  [dim]{age}[/]  {escape(status.activity)}"
    )
    parts: list[RenderableType] = [title, stages]
    parts += [Text.from_markup(f"   {_event(event)}") for event in status.events[-MAX_EVENTS:]]
    if extra:
        parts.append(Text.from_markup(f"   {escape(extra)}"))
    return Group(*parts)


def _stage(stage: Stage) -> str:
    time_spent = f" [dim]{duration(stage.seconds)}[/]" if stage.seconds is not None else ""
    return f"{MARKS[stage.state]} {stage.name}{time_spent}  {escape(stage.detail)}".rstrip()


def _event(event: DemoEvent) -> str:
    color = "red" if event.warning else "cyan"
    return f"[dim]{event.about} ·[/] [{color}]{event.reason}[/] [dim]·[/] {escape(event.message)}"
