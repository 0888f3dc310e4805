# SPDX-License-Identifier: Apache-2.0
"""Poll a run until it reaches a state, and show it: redrawn on a terminal, otherwise one line per change."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Final, Literal, Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from finetune_client.backend import Backend, Object, Outage, parse
from finetune_client.errors import OperationError, ProgramExit
from finetune_client.outcome import WaitFor, find_outcome
from finetune_client.tables import printable
from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.api.inference_deployment import InferenceDeployment
from finetune_operator.api.meta import API_VERSION, Condition
from finetune_operator.status.conditions import find_condition, present_state
from finetune_operator.status.prediction import predicted_column, took_column
from finetune_operator.status.reasons import ConditionType
from finetune_trainer.contract.accelerators import gibibytes

State = Literal["waiting", "running", "done"]

STAGE_CONDITIONS: Final[tuple[tuple[str, ConditionType], ...]] = (
    ("prepare", ConditionType.DATASET_READY),
    ("preflight", ConditionType.PREFLIGHTED),
    ("train", ConditionType.TRAINED),
    ("evaluate", ConditionType.EVALUATED),
)
"""Stages with the condition that is True when the stage is done."""
APPLY_TOLERANCE: Final = timedelta(seconds=5)
"""Objects that were applied together with the run may be older than it by at most this time."""


@dataclass(frozen=True, slots=True)
class StageLine:
    """One line in the list of stages."""

    name: str
    state: State
    seconds: float | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class RunEvent:
    """A Kubernetes event about one of our objects."""

    key: str
    about: str
    reason: str
    message: str
    warning: bool


@dataclass(frozen=True, slots=True)
class RunStatus:
    """A run and the endpoint that follows its model line, at one moment."""

    job: FineTuneJob
    endpoint: InferenceDeployment | None
    events: tuple[RunEvent, ...]
    taken_at: datetime
    checkpoint: Checkpoint | None = None
    """The Checkpoint that the run evaluated, with its loss curve."""

    @classmethod
    def of(
        cls,
        job: Object,
        endpoint: Object | None,
        events: Sequence[Object],
        now: datetime,
        checkpoint: Object | None = None,
    ) -> "RunStatus":
        """Create the status from the objects of the API server, without events from before the run."""
        run = parse(FineTuneJob, job)
        since = (run.metadata.creation_timestamp or now) - APPLY_TOLERANCE
        return cls(
            run,
            parse(InferenceDeployment, endpoint) if endpoint is not None else None,
            _run_events(events, since),
            now,
            parse(Checkpoint, checkpoint) if checkpoint is not None else None,
        )

    def condition(self, type_: ConditionType) -> Condition | None:
        """The run's condition of this type if it is True."""
        return true_condition(self.job.status.conditions, type_)

    @property
    def own_checkpoint(self) -> str | None:
        """The Checkpoint of this run that was evaluated."""
        evaluation = self.job.status.evaluation
        return evaluation.checkpoint if evaluation is not None else None

    @property
    def serves_own(self) -> bool:
        """Whether the endpoint is Ready, and one of its models is this run's Checkpoint."""
        return (
            self.endpoint is not None
            and self.own_checkpoint is not None
            and self.own_checkpoint in {model.checkpoint for model in self.endpoint.status.models}
            and true_condition(self.endpoint.status.conditions, ConditionType.READY) is not None
        )

    @property
    def stages(self) -> tuple[StageLine, ...]:
        """All stages in order; the first stage that is not done counts as running."""
        measured: dict[str, float] = {stage.name: stage.seconds for stage in self.job.status.stages}
        lines = []
        before = True
        for name, condition in STAGE_CONDITIONS:
            done = self.condition(condition) is not None
            state: State = "done" if done else "running" if before else "waiting"
            lines.append(StageLine(name, state, measured.get(name), self._detail(name) if before else ""))
            before = done
        promotion = self._promotion(evaluated=before)
        lines.append(promotion)
        served: State = "done" if self.serves_own else "running" if promotion.state == "done" else "waiting"
        lines.append(StageLine("serve", served, detail=self._serving()))
        return tuple(lines)

    def _promotion(self, *, evaluated: bool) -> StageLine:
        ready = self.condition(ConditionType.READY)
        if ready is None:
            return StageLine("promote", "running" if evaluated else "waiting")
        outcome = find_outcome(self.job, WaitFor.PROMOTED, self.checkpoint)
        if outcome is None:
            return StageLine("promote", "running", detail=f"waits for: finetune approve {self.job.name}")
        return StageLine("promote", "done" if outcome.exit_code is ProgramExit.DONE else "waiting")

    @property
    def activity(self) -> str:
        """Reason and message of the run's present condition."""
        state = present_state(self.job.status.conditions)
        if state is None:
            return "not reconciled yet"
        return printable(f"{state.reason}: {state.message}" if state.message else state.reason)

    @property
    def figures(self) -> str:
        """What training takes: the prediction, and what it took or uses now; empty without a prediction."""
        prediction, progress = self.job.status.prediction, self.job.status.progress
        if prediction is None:
            return ""
        parts = [f"predicted {predicted_column(prediction)}"]
        if took := took_column(prediction):
            parts.append(f"took {took}")
        elif progress is not None and progress.device_memory_bytes is not None:
            parts.append(f"uses {gibibytes(progress.device_memory_bytes)} GiB")
        return "  ".join(parts)

    @property
    def losses(self) -> tuple[float, ...]:
        """The recorded curve of the training loss; empty until the Checkpoint exists."""
        curve = self.checkpoint.spec.loss_curve if self.checkpoint is not None else None
        return tuple(point.train for point in curve or ())

    def _detail(self, name: str) -> str:
        progress = self.job.status.progress
        status = self.job.status
        if name == "prepare":
            return printable(status.resolved.dataset_version or "")
        if name == "evaluate" and status.evaluation is not None:
            return printable("; ".join(gate.message for gate in status.evaluation.gates))
        if progress is None or progress.stage != name or not progress.total_steps:
            return ""
        parts = [f"step {progress.step}/{progress.total_steps}"]
        if name == "train" and progress.loss is not None:
            parts.append(f"loss {progress.loss:.3f}")
        if progress.eta_seconds is not None:
            parts.append(f"ETA {duration(progress.eta_seconds)}")
        return "  ".join(parts)

    def _serving(self) -> str:
        if self.endpoint is None:
            return ""
        status = self.endpoint.status
        new = next((each.name for each in status.revisions if each.state == "RollingOut"), None)
        both = f"{status.revision} → {new}"
        return printable(both if new and status.revision not in ("", new) else new or status.revision)


def true_condition(conditions: Sequence[Condition], type_: ConditionType) -> Condition | None:
    """The condition of this type if it is True."""
    condition = find_condition(conditions, type_)
    return condition if condition is not None and condition.status == "True" else None


def duration(seconds: float) -> str:
    """`42 s` or `3:07`."""
    return f"{seconds:.0f} s" if seconds < 60 else f"{int(seconds) // 60}:{int(seconds) % 60:02}"


BARS: Final = "▁▂▃▄▅▆▇█"
MAX_BARS: Final = 32


def sparkline(values: Sequence[float]) -> str:
    """The last MAX_BARS finite values as bars between the lowest and the highest."""
    shown = [value for value in values if math.isfinite(value)][-MAX_BARS:]
    if len(shown) < 2:
        return ""
    low, high = min(shown), max(shown)
    span = high - low or 1.0
    return "".join(BARS[round((value - low) / span * (len(BARS) - 1))] for value in shown)


def _run_events(events: Sequence[Object], since: datetime) -> tuple[RunEvent, ...]:
    ours = [
        event
        for event in events
        if event["involvedObject"].get("apiVersion") == API_VERSION
        and event.get("lastTimestamp")
        and datetime.fromisoformat(event["lastTimestamp"]) >= since
    ]
    ours.sort(key=lambda event: (event["lastTimestamp"], int(event["metadata"]["resourceVersion"])))
    return tuple(
        RunEvent(
            key=event["metadata"]["uid"],
            about=printable(f"{event['involvedObject']['kind']} {event['involvedObject']['name']}"),
            reason=printable(event.get("reason", "")),
            message=printable(event.get("message", "")),
            warning=event.get("type") == "Warning",
        )
        for event in ours
    )


def now() -> datetime:
    """The present time in UTC."""
    return datetime.now(UTC)


MARKS: Final = {"done": "[green]✔[/]", "running": "[yellow]▶[/]", "waiting": "[dim]·[/]"}
MAX_EVENTS: Final = 5
PROGRESS_SECONDS: Final = 10.0
"""Minimum time between two progress lines when output is not a terminal."""


class View(Protocol):
    """Shows the states of a run during a block."""

    def show(self, status: RunStatus) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def create_view(console: Console, extra: Callable[[], str], *, explains: bool = False) -> View:
    """The view for the console.

    Args:
        console: a terminal, or other output.
        extra: returns an additional line, or an empty text.
        explains: whether lines also have what the run waits for, and the prediction; a terminal always has.
    """
    return LiveView(console, extra) if console.is_terminal else LineView(console, extra, explains=explains)


class LossHistory:
    """Losses that progress reported while the run was watched, until the Checkpoint has the curve."""

    def __init__(self) -> None:
        self._by_step: dict[int, float] = {}

    def add(self, status: RunStatus) -> Sequence[float]:
        """The curve with the loss of this status."""
        progress = status.job.status.progress
        if progress is not None and progress.stage == "train" and progress.loss is not None:
            self._by_step[progress.step] = progress.loss
        return status.losses or [loss for _, loss in sorted(self._by_step.items())]


class LiveView:
    """Redraws stages and the newest events; the last state stays on the terminal."""

    def __init__(self, console: Console, extra: Callable[[], str]) -> None:
        self._console = console
        self._extra = extra
        self._live = Live(console=console)
        self._losses = LossHistory()

    def show(self, status: RunStatus) -> None:
        self._live.update(render(status, self._extra(), self._losses.add(status)))

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

    def __init__(self, console: Console, extra: Callable[[], str], *, explains: bool = False) -> None:
        self._explains = explains
        self._console = console
        self._extra = extra
        self._printed_events: set[str] = set()
        self._states: dict[str, str] = {}
        self._said = {"activity": "", "figures": ""}
        self._progress = ""
        self._next_progress = 0.0

    def show(self, status: RunStatus) -> None:
        for event in status.events:
            if event.key not in self._printed_events:
                self._printed_events.add(event.key)
                self._print(_event(event))
        for stage in status.stages:
            if stage.state != "waiting" and self._states.get(stage.name) != stage.state:
                self._states[stage.name] = stage.state
                self._print(_stage(stage))
        for what, text in (("activity", status.activity), ("figures", status.figures)):
            if self._explains and text != self._said[what]:
                self._said[what] = text
                self._print(escape(text))
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


def render(status: RunStatus, extra: str, losses: Sequence[float] = ()) -> RenderableType:
    """Title, stages, loss curve, figures and newest events of a run."""
    stages = Table.grid(padding=(0, 1))
    for _ in range(4):
        stages.add_column()
    for stage in status.stages:
        time_spent = "" if stage.seconds is None else duration(stage.seconds)
        stages.add_row(f"  {MARKS[stage.state]}", stage.name, f"[dim]{time_spent}[/]", escape(stage.detail))
    created = status.job.metadata.creation_timestamp or status.taken_at
    age = duration((status.taken_at - created).total_seconds())
    title = Text.from_markup(
        f"   [bold]FineTuneJob {escape(status.job.name)}[/]  [dim]{age}[/]  {escape(status.activity)}"
    )
    parts: list[RenderableType] = [title, stages]
    if curve := sparkline(losses):
        parts.append(Text(f"   loss {losses[0]:.3f} {curve} {losses[-1]:.3f}"))
    if status.figures:
        parts.append(Text(f"   {status.figures}"))
    parts += [Text.from_markup(f"   {_event(event)}") for event in status.events[-MAX_EVENTS:]]
    if extra:
        parts.append(Text.from_markup(f"   {escape(extra)}"))
    return Group(*parts)


def _stage(stage: StageLine) -> str:
    time_spent = f" [dim]{duration(stage.seconds)}[/]" if stage.seconds is not None else ""
    return f"{MARKS[stage.state]} {stage.name}{time_spent}  {escape(stage.detail)}".rstrip()


def _event(event: RunEvent) -> str:
    color = "red" if event.warning else "cyan"
    about, reason = escape(event.about), escape(event.reason)
    return f"[dim]{about} ·[/] [{color}]{reason}[/] [dim]·[/] {escape(event.message)}"


POLL_SECONDS: Final = 1.0


class StalledError(OperationError):
    """A run or its endpoint does not advance.

    Attributes:
        status: the last state.
    """

    def __init__(self, message: str, commands: Sequence[str], status: RunStatus) -> None:
        super().__init__(message, commands)
        self.status = status


class Follower:
    """Follows one run and an endpoint.

    Args:
        backend: where they are.
        console: where they are shown.
        job: name of the FineTuneJob.
        endpoint: name of the InferenceDeployment; empty selects one that follows the model line, if any,
            only to show it.
        explains: whether plain lines also have what the run waits for, and the prediction.
        patience_seconds: time without any change after which the run or the endpoint counts as stuck. By
            default never: a run may wait for a queue, an approval or a device.
    """

    def __init__(
        self,
        backend: Backend,
        console: Console,
        job: str,
        endpoint: str = "",
        *,
        explains: bool = False,
        patience_seconds: float = math.inf,
    ) -> None:
        self._backend = backend
        self._patience_seconds = patience_seconds
        self._job = job
        self._endpoint = endpoint
        self._extra: Callable[[], str] = lambda: ""
        self._view = create_view(console, self._extra_line, explains=explains)

    def _extra_line(self) -> str:
        return self._extra()

    def status(self) -> RunStatus:
        """The present state of the run and its endpoint.

        Raises:
            OperationError: the run was deleted.
        """
        found = self._backend.get("FineTuneJob", self._job)
        if found is None:
            raise OperationError(f"FineTuneJob {self._job} was deleted")
        evaluation = found.get("status", {}).get("evaluation")
        checkpoint = self._backend.get("Checkpoint", evaluation["checkpoint"]) if evaluation else None
        events = self._backend.events()
        return RunStatus.of(found, self._find_endpoint(found), events, now(), checkpoint)

    def _find_endpoint(self, job: Object) -> Object | None:
        if self._endpoint:
            return self._backend.get("InferenceDeployment", self._endpoint)
        line = job["spec"]["modelLine"]
        for found in self._backend.objects("InferenceDeployment"):
            models = found["spec"].get("models", ())
            if any((model.get("follow") or {}).get("modelLine") == line for model in models):
                return found
        return None

    def until(self, done: Callable[[RunStatus], bool], extra: Callable[[], str] = lambda: "") -> RunStatus:
        """Show the run until `done` is true, and return that state.

        Args:
            done: condition to wait for.
            extra: an additional line to show.

        Raises:
            StalledError: the run or the named endpoint is stalled, or nothing changed for `patience_seconds`.
            OperationError: the run was deleted, or the API server does not answer for long.
        """
        changed_at, before = time.monotonic(), ""
        self._extra = extra
        outage = Outage()
        with self._view as view:
            while True:
                status = outage.read(self.status)
                if status is None:
                    time.sleep(POLL_SECONDS)
                    continue
                view.show(status)
                if done(status):
                    return status
                self._raise_if_stalled(status)
                state = f"{status.job.status!r} {status.endpoint!r}"
                if state != before:
                    changed_at, before = time.monotonic(), state
                elif time.monotonic() - changed_at > self._patience_seconds:
                    minutes = self._patience_seconds / 60
                    raise self._failure(status, f"no change for {minutes:.0f} min: {status.activity}")
                time.sleep(POLL_SECONDS)

    def _raise_if_stalled(self, status: RunStatus) -> None:
        stalled = status.condition(ConditionType.STALLED)
        if stalled is not None:
            raise self._failure(status, f"FineTuneJob {self._job}: {stalled.reason}: {stalled.message}")
        if self._endpoint and status.endpoint is not None:
            stalled = true_condition(status.endpoint.status.conditions, ConditionType.STALLED)
            if stalled is not None:
                raise self._failure(
                    status, f"InferenceDeployment {status.endpoint.name}: {stalled.reason}: {stalled.message}"
                )

    def _failure(self, status: RunStatus, message: str) -> StalledError:
        kubectl = f"kubectl -n {self._backend.namespace}"
        commands = [f"{kubectl} describe finetunejob {self._job}"]
        endpoint = self._endpoint or (status.endpoint.name if status.endpoint is not None else "")
        if endpoint:
            commands.append(f"{kubectl} describe inferencedeployment {endpoint}")
        return StalledError(message, (*commands, f"{kubectl} get pods"), status)
