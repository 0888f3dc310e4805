# SPDX-License-Identifier: Apache-2.0
"""Plan one pass over a FineTuneSchedule: observe its runs, and start one if a trigger is due.

A start takes two passes. The first records the triggers and the name of the run, the second creates it, so a
crash neither loses a trigger nor starts two runs. A run that was deleted is not created again.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.api.finetune_schedule import (
    MAX_ACTIVE,
    MAX_FAILURES,
    ActiveRun,
    FineTuneSchedule,
    FineTuneScheduleStatus,
    LastTrigger,
    ScheduleDisplay,
)
from finetune_operator.api.meta import find_unimplemented
from finetune_operator.plan import NEVER_OBSERVED, Apply, Plan
from finetune_operator.reconcile.finetuneschedule.triggers import (
    DueTrigger,
    check_cron,
    due_triggers,
    is_late,
    latest_version,
    missed_time,
    next_time,
    see_version,
)
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.passes import (
    Blocked,
    Done,
    Failed,
    PassOutcome,
    PlanBuilder,
    Suspended,
    earliest,
    finish_pass,
)
from finetune_operator.reconcile.platform.profiles import named_profile
from finetune_operator.reconcile.templates import cancel_run, create_run, find_run, run_name, why_ended
from finetune_operator.status.conditions import NOT_PASSED_REASONS, is_finished, present_state
from finetune_operator.status.reasons import ConditionType, Reason

NOW_SECONDS: Final = 1.0
"""Seconds until the second pass of a start."""
DELETED_SECONDS: Final = 120.0
"""Seconds after which a created run that is not found counts as deleted. A new operator process may not have
received it yet."""


class SchedulePass:
    """One pass over a schedule: its status so far, and the plan."""

    def __init__(self, schedule: FineTuneSchedule, snapshot: Snapshot) -> None:
        self.schedule = schedule
        self.snapshot = snapshot
        self.draft = PlanBuilder(snapshot)
        self.cancelled: list[Apply] = []
        self.status = schedule.status
        self.last_failure = ""

    @property
    def now(self) -> datetime:
        """Time of the pass."""
        return self.snapshot.now

    def set(self, **update: Any) -> None:
        """Change fields of the status."""
        self.status = self.status.model_copy(update=update)

    def find(self, active: ActiveRun) -> FineTuneJob | Blocked | None:
        """The run of an entry; None if it does not exist."""
        return find_run(self.schedule, active.name, active.key, self.snapshot)

    def plan(self, halt: PassOutcome) -> Plan:
        """The plan of a pass that ends with `halt`."""
        status = self.status.model_copy(update={"display": display(self.schedule, self.status)})
        result = finish_pass(self.schedule, status, halt, self.now)
        self.draft.events += result.events
        plan = self.draft.plan(result.manifest, result.requeue_after)
        return replace(plan, apply=tuple(self.cancelled))


def reconcile(schedule: FineTuneSchedule, snapshot: Snapshot) -> Plan:
    """The plan of one pass over a schedule."""
    if schedule.metadata.deletion_timestamp is not None:
        return Plan()
    current = SchedulePass(schedule, snapshot)
    plan = current.plan(_halt(current))
    if any(each.missing_since is not None for each in current.status.active):
        return replace(plan, requeue_after=earliest(plan.requeue_after, DELETED_SECONDS))
    return plan


def _halt(current: SchedulePass) -> PassOutcome:
    """How the pass ends."""
    for step in (_note_edit, _observe, _validate, _give_up, _suspend, _create, _check_platform):
        halt = step(current)
        if halt is not None:
            return halt
    return _start_due(current)


def _note_edit(current: SchedulePass) -> None:
    """Forget failures before an edit, and count times from the creation, or from their edit, on."""
    schedule, status = current.schedule, current.status
    cron = schedule.spec.triggers.cron
    if status.observed_generation != schedule.metadata.generation:
        current.set(failures=0)
    times = None if cron is None else f"{cron.schedule} {cron.time_zone}"
    if times != status.cron:
        is_first = status.observed_generation == NEVER_OBSERVED
        since = schedule.metadata.creation_timestamp if is_first else None
        current.set(cron=times, cron_since=None if times is None else since or current.now)
    has_times = cron is not None and not schedule.spec.suspend and check_cron(cron) is None
    current.set(next_at=next_time(cron, current.now) if cron is not None and has_times else None)


def display(schedule: FineTuneSchedule, status: FineTuneScheduleStatus) -> ScheduleDisplay:
    """Texts for kubectl get."""
    triggers, found = schedule.spec.triggers, []
    if triggers.cron is not None:
        found.append(f"{triggers.cron.schedule} ({triggers.cron.time_zone})")
    if triggers.new_version is not None:
        found.append(f"newVersion({triggers.new_version.min_changed_rows})")
    last = max(status.last_triggers, key=lambda each: each.at, default=None)
    return ScheduleDisplay(
        triggers=", ".join(found) or "on request",
        last="" if last is None else f"{last.run} ({last.trigger})",
        next="" if status.next_at is None else f"{status.next_at:%Y-%m-%d %H:%M} UTC",
        active=", ".join(each.name for each in status.active),
    )


def _observe(current: SchedulePass) -> PassOutcome | None:
    """Take the ends of runs into the status."""
    unfinished = []
    for active in current.status.active:
        run = current.find(active)
        if isinstance(run, Blocked):
            return run
        if run is None and active.created:
            missing = active.missing_since or current.now.replace(microsecond=0)
            if (current.now - missing).total_seconds() < DELETED_SECONDS:
                unfinished.append(active.model_copy(update={"missing_since": missing}))
            continue
        if run is not None and is_finished(run):
            _note_end(current, run)
            continue
        found = {"created": True, "missing_since": None}
        unfinished.append(active if run is None else active.model_copy(update=found))
    current.set(active=tuple(unfinished))
    return None


def _note_end(current: SchedulePass, run: FineTuneJob) -> None:
    state = present_state(run.status.conditions)
    if state is None or state.reason == Reason.CANCELLED:
        return
    if state.type == ConditionType.READY:
        current.set(last_succeeded=run.name, failures=0)
    elif state.reason in NOT_PASSED_REASONS:
        current.set(failures=0)
    else:
        current.set(failures=current.status.failures + 1)
        current.last_failure = f"{run.name}: {': '.join(why_ended(run))}"


def _validate(current: SchedulePass) -> PassOutcome | None:
    """Refuse a schedule that can never start a run."""
    spec = current.schedule.spec
    if messages := find_unimplemented(spec):
        return Failed(Reason.NOT_IMPLEMENTED, "; ".join(messages))
    wrong = None if spec.triggers.cron is None else check_cron(spec.triggers.cron)
    return None if wrong is None else Failed(Reason.INVALID_SPEC, wrong)


def _give_up(current: SchedulePass) -> PassOutcome | None:
    """Start no run after too many failures in a row."""
    failures = current.status.failures
    if failures < MAX_FAILURES:
        return None
    known = present_state(current.schedule.status.conditions)
    if not current.last_failure and known is not None and known.reason == Reason.RUNS_FAIL:
        return Failed(Reason.RUNS_FAIL, known.message)
    last = f" The last one, {current.last_failure}" if current.last_failure else ""
    return Failed(
        Reason.RUNS_FAIL,
        f"the last {failures} runs failed, so no other one starts until spec is changed: correct the cause,"
        f" and edit the template, or set spec.suspend to true and to false again.{last}",
    )


def _suspend(current: SchedulePass) -> PassOutcome | None:
    if not current.schedule.spec.suspend:
        return None
    return Suspended(Reason.SUSPENDED, "suspended by spec.suspend: no further run starts, and runs continue")


def _create(current: SchedulePass) -> PassOutcome | None:
    """Create the runs that the pass before has recorded."""
    entries = []
    for active in current.status.active:
        if not active.created:
            spec = current.schedule.spec.template.spec.to_dict()
            if active.version is not None:
                ref = {**spec["dataset"]["ref"], "version": active.version}
                spec = {**spec, "dataset": {**spec["dataset"], "ref": ref}}
            current.draft.create.append(create_run(current.schedule, active.key, spec))
        entries.append(active.model_copy(update={"created": True}))
    current.set(active=tuple(entries))
    return None


def _check_platform(current: SchedulePass) -> PassOutcome | None:
    """Wait for what every run needs, before a trigger starts one."""
    schedule, template = current.schedule, current.schedule.spec.template.spec
    profile = named_profile(
        template.compute.profile,
        "spec.template.spec.compute.profile",
        schedule.namespace,
        current.snapshot,
    )
    if isinstance(profile, Blocked):
        return profile
    ref = template.dataset.ref
    if ref is not None and ref.name not in current.snapshot.datasets:
        return Blocked(
            Reason.DATASET_NOT_FOUND,
            f"Dataset {ref.name} of spec.template.spec.dataset.ref does not exist in namespace"
            f" {schedule.namespace}: create it",
        )
    return None


def _start_due(current: SchedulePass) -> PassOutcome:
    """Record the start of a run if a trigger is due and may start one."""
    _see_version(current)
    schedule, status = current.schedule, current.status
    since = status.cron_since or current.now
    due = list(due_triggers(schedule, current.snapshot, since, status.seen_version))
    until_next = None if status.next_at is None else (status.next_at - current.now).total_seconds()
    if not due:
        return _idle(current, since, until_next)
    texts = " and ".join(each.text for each in due)
    names = ", ".join(each.name for each in status.active)
    policy = schedule.spec.concurrency_policy
    is_full = policy == "Allow" and len(status.active) >= MAX_ACTIVE
    if (status.active and policy == "Forbid") or is_full:
        return Done(
            Reason.SCHEDULED,
            f"{texts}: waits for the end of {names}, which runs for {_duration(current)}",
            until_next,
        )
    wait = _until_interval(current)
    if wait and not any(each.trigger == "Request" for each in due):
        return Done(
            Reason.SCHEDULED,
            f"{texts}: waits until {schedule.spec.min_interval_seconds} s after the last start"
            " (spec.minIntervalSeconds)",
            earliest(wait, until_next),
        )
    if policy == "Replace":
        _cancel_active(current)
    name = _record_start(current, due)
    return Done(Reason.SCHEDULED, f"{texts}: starts FineTuneJob {name}", NOW_SECONDS)


def _see_version(current: SchedulePass) -> None:
    found = latest_version(current.schedule, current.snapshot)
    if found is None:
        return
    dataset, version = found
    seen = current.status.seen_version
    is_trained = seen is None and any(
        each.spec.lineage.dataset_version == version.name
        for each in current.snapshot.checkpoints.of_line(current.schedule.spec.template.spec.model_line)
    )
    current.set(seen_version=see_version(seen, dataset, version, is_trained=is_trained))


def _idle(current: SchedulePass, since: datetime, until_next: float | None) -> PassOutcome:
    status, parts = current.status, []
    if status.active:
        parts.append(f"unfinished: {', '.join(each.name for each in status.active)}")
    missed = missed_time(current.schedule, since, current.now)
    if missed is not None and is_late(current.schedule, missed, current.now):
        parts.append(
            f"the run of {missed:%Y-%m-%d %H:%M} UTC was left out, because it could not start within"
            f" {current.schedule.spec.starting_deadline_seconds} s (spec.startingDeadlineSeconds)"
        )
    parts.append(
        "waits for a trigger" if status.next_at is None else f"next time {status.next_at:%Y-%m-%d %H:%M} UTC"
    )
    return Done(Reason.SCHEDULED, "; ".join(parts), until_next)


def _duration(current: SchedulePass) -> str:
    """How long the oldest unfinished run has run, in whole hours, so that the message seldom changes."""
    runs = (current.snapshot.finetunejobs.get(each.name) for each in current.status.active)
    created = [each.metadata.creation_timestamp for each in runs if each is not None]
    known = [each for each in created if each is not None]
    hours = int((current.now - min(known)).total_seconds() // 3600) if known else 0
    return f"{hours} h" if hours else "less than an hour"


def _until_interval(current: SchedulePass) -> float:
    """Seconds until the next run may start; 0: now."""
    last = current.status.last_started_at
    if last is None:
        return 0.0
    allowed = last + timedelta(seconds=current.schedule.spec.min_interval_seconds)
    return max(0.0, (allowed - current.now).total_seconds())


def _cancel_active(current: SchedulePass) -> None:
    for active in current.status.active:
        run = current.find(active)
        if isinstance(run, FineTuneJob) and not run.spec.cancel:
            current.cancelled.append(cancel_run(run))
    current.set(active=())


def _record_start(current: SchedulePass, due: Sequence[DueTrigger]) -> str:
    """Record that the triggers have started a run, which the next pass creates; its name.

    If the run exists, because the status was lost, the next pass observes it.
    """
    schedule, now = current.schedule, current.now.replace(microsecond=0)
    first = due[0]
    name = run_name(schedule, first.key)
    version = next((each.version for each in due if each.version is not None), None)
    triggers = {each.trigger: each for each in current.status.last_triggers}
    for each in due:
        triggers[each.trigger] = LastTrigger(trigger=each.trigger, key=each.key, at=now, run=name)
    seen = current.status.seen_version
    current.set(
        active=(*current.status.active, ActiveRun(name=name, key=first.key, version=version)),
        last_triggers=tuple(triggers.values()),
        last_started_at=now,
        seen_version=None if seen is None else seen.model_copy(update={"changed_rows": 0}),
    )
    return name
