# SPDX-License-Identifier: Apache-2.0
"""The state of a run and its endpoint, from their objects and events."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.api.inference_deployment import InferenceDeployment
from finetune_operator.api.meta import API_VERSION, Condition
from tools.demo.access import Object

State = Literal["waiting", "running", "done"]

STAGE_CONDITIONS: Final[tuple[tuple[str, str], ...]] = (
    ("prepare", "DatasetReady"),
    ("preflight", "Preflighted"),
    ("train", "Trained"),
    ("evaluate", "Evaluated"),
)
"""Stages with the condition that is True when the stage is done."""
APPLY_TOLERANCE: Final = timedelta(seconds=5)
"""Objects that were applied together with the run may be older than it by at most this time."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One line in the list of stages."""

    name: str
    state: State
    seconds: float | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class DemoEvent:
    """A Kubernetes event about one of our objects."""

    key: str
    about: str
    reason: str
    message: str
    warning: bool


@dataclass(frozen=True, slots=True)
class DemoStatus:
    """A run and the endpoint that follows its model line, at one moment."""

    job: FineTuneJob
    endpoint: InferenceDeployment | None
    events: tuple[DemoEvent, ...]
    taken_at: datetime

    @classmethod
    def of(
        cls, job: Object, endpoint: Object | None, events: Sequence[Object], now: datetime
    ) -> "DemoStatus":
        """Create the status from the objects of the API server, without events of an earlier demo."""
        run = FineTuneJob.model_validate(job)
        since = (run.metadata.creation_timestamp or now) - APPLY_TOLERANCE
        return cls(
            run,
            InferenceDeployment.model_validate(endpoint) if endpoint is not None else None,
            _demo_events(events, since),
            now,
        )

    def condition(self, type_: str) -> Condition | None:
        """The run's condition of this type if it is True."""
        return true_condition(self.job.status.conditions, type_)

    @property
    def served_checkpoint(self) -> str | None:
        """The Checkpoint that the endpoint serves."""
        served = self.endpoint.status.models if self.endpoint is not None else ()
        return served[0].checkpoint if served else None

    @property
    def own_checkpoint(self) -> str | None:
        """The Checkpoint of this run that was evaluated."""
        evaluation = self.job.status.evaluation
        return evaluation.checkpoint if evaluation is not None else None

    @property
    def serves_own(self) -> bool:
        """Whether the endpoint is Ready and serves only this run's Checkpoint."""
        return (
            self.endpoint is not None
            and self.own_checkpoint is not None
            and self.served_checkpoint == self.own_checkpoint
            and true_condition(self.endpoint.status.conditions, "Ready") is not None
        )

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All stages in order; the first stage that is not done counts as running."""
        measured: dict[str, float] = {stage.name: stage.seconds for stage in self.job.status.stages}
        lines = []
        before = True
        for name, condition in STAGE_CONDITIONS:
            done = self.condition(condition) is not None
            state: State = "done" if done else "running" if before else "waiting"
            lines.append(Stage(name, state, measured.get(name), self._detail(name) if before else ""))
            before = done
        promoted = self.condition("Ready") is not None
        lines.append(Stage("promote", "done" if promoted else "running" if before else "waiting"))
        served: State = "done" if self.serves_own else "running" if promoted else "waiting"
        lines.append(Stage("serve", served, detail=self._serving()))
        return tuple(lines)

    @property
    def activity(self) -> str:
        """Reason and message of the run's present condition."""
        for type_ in ("Stalled", "Suspended", "Reconciling", "Ready"):
            condition = self.condition(type_)
            if condition is not None:
                return f"{condition.reason}: {condition.message}" if condition.message else condition.reason
        return "not reconciled yet"

    def _detail(self, name: str) -> str:
        progress = self.job.status.progress
        status = self.job.status
        if name == "prepare":
            return status.resolved.dataset_version or ""
        if name == "evaluate" and status.evaluation is not None:
            return "; ".join(gate.message for gate in status.evaluation.gates)
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
        return (
            f"{status.revision} → {new}"
            if new and status.revision not in ("", new)
            else new or status.revision
        )


def true_condition(conditions: Sequence[Condition], type_: str) -> Condition | None:
    """The condition of this type if it is True."""
    return next((each for each in conditions if each.type == type_ and each.status == "True"), None)


def duration(seconds: float) -> str:
    """`42 s` or `3:07`."""
    return f"{seconds:.0f} s" if seconds < 60 else f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def _demo_events(events: Sequence[Object], since: datetime) -> tuple[DemoEvent, ...]:
    ours = [
        event
        for event in events
        if event["involvedObject"].get("apiVersion") == API_VERSION
        and datetime.fromisoformat(event["lastTimestamp"]) >= since
    ]
    ours.sort(key=lambda event: (event["lastTimestamp"], int(event["metadata"]["resourceVersion"])))
    return tuple(
        DemoEvent(
            key=event["metadata"]["uid"],
            about=f"{event['involvedObject']['kind']} {event['involvedObject']['name']}",
            reason=event.get("reason", ""),
            message=event.get("message", ""),
            warning=event.get("type") == "Warning",
        )
        for event in ours
    )


def now() -> datetime:
    """The present time in UTC."""
    return datetime.now(UTC)
