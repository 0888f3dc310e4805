"""A run on the terminal: redrawn in place, or one line a change where the output is no terminal."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from tools.demo.stages import DemoEvent, DemoStatus, Stage, duration

MARKS: Final = {"done": "[green]✔[/]", "running": "[yellow]▶[/]", "waiting": "[dim]·[/]"}
MAX_EVENTS: Final = 5
PROGRESS_SECONDS: Final = 10.0
"""Between two lines about progress where the output is no terminal."""


class View(Protocol):
    """Shows snapshots as they come, while it is entered."""

    def show(self, snapshot: DemoStatus) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def view(console: Console, extra: Callable[[], str]) -> View:
    """The view that suits the console; `extra` is a line of the caller's own, empty for none."""
    return LiveView(console, extra) if console.is_terminal else LineView(console, extra)


class LiveView:
    """Stages and the newest events, redrawn; what was shown last stays."""

    def __init__(self, console: Console, extra: Callable[[], str]) -> None:
        self._console = console
        self._extra = extra
        self._live = Live(console=console)

    def show(self, snapshot: DemoStatus) -> None:
        self._live.update(render(snapshot, self._extra()))

    def __enter__(self) -> Self:
        # A Live that has ended cannot begin again.
        self._live = Live(console=self._console, refresh_per_second=4)
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)


class LineView:
    """A line for each event and each change of a stage, and one now and then about progress."""

    def __init__(self, console: Console, extra: Callable[[], str]) -> None:
        self._console = console
        self._extra = extra
        self._told: set[str] = set()
        self._states: dict[str, str] = {}
        self._progress = ""
        self._next_progress = 0.0

    def show(self, snapshot: DemoStatus) -> None:
        for event in snapshot.events:
            if event.key not in self._told:
                self._told.add(event.key)
                self._print(_event(event))
        for stage in snapshot.stages:
            if stage.state != "waiting" and self._states.get(stage.name) != stage.state:
                self._states[stage.name] = stage.state
                self._print(_stage(stage))
        running = next((stage for stage in snapshot.stages if stage.state == "running"), None)
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


def render(snapshot: DemoStatus, extra: str) -> RenderableType:
    """The whole picture of a run at one moment."""
    stages = Table.grid(padding=(0, 1))
    for _ in range(4):
        stages.add_column()
    for stage in snapshot.stages:
        spent = "" if stage.seconds is None else duration(stage.seconds)
        stages.add_row(f"  {MARKS[stage.state]}", stage.name, f"[dim]{spent}[/]", escape(stage.detail))
    created = snapshot.job.metadata.creation_timestamp or snapshot.taken_at
    age = duration((snapshot.taken_at - created).total_seconds())
    title = Text.from_markup(
        f"   [bold]FineTuneJob {snapshot.job.name}[/]  [dim]{age}[/]  {escape(snapshot.doing)}"
    )
    parts: list[RenderableType] = [title, stages]
    parts += [Text.from_markup(f"   {_event(event)}") for event in snapshot.events[-MAX_EVENTS:]]
    if extra:
        parts.append(Text.from_markup(f"   {escape(extra)}"))
    return Group(*parts)


def _stage(stage: Stage) -> str:
    spent = f" [dim]{duration(stage.seconds)}[/]" if stage.seconds is not None else ""
    return f"{MARKS[stage.state]} {stage.name}{spent}  {escape(stage.detail)}".rstrip()


def _event(event: DemoEvent) -> str:
    color = "red" if event.warning else "cyan"
    return f"[dim]{event.about}[/] [{color}]{event.reason}[/] {escape(event.message)}"
