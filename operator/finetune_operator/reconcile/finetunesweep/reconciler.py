# SPDX-License-Identifier: Apache-2.0
"""Plan one pass over a FineTuneSweep: observe its trials, stop bad ones, start others, then train the best.

The state of a trial is recorded when its run ends. A run that was deleted before is created again: to drop a
trial, cancel its run.
"""

from dataclasses import replace
from typing import Any, Final

from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.api.finetune_sweep import (
    CHANGED_BY_CONTINUED_RUN,
    LORA,
    BestTrial,
    FineTuneSweep,
    FineTuneSweepStatus,
    SweepDisplay,
    Trial,
)
from finetune_operator.api.meta import find_unimplemented
from finetune_operator.plan import Apply, Plan
from finetune_operator.reconcile.finetunesweep.halving import continues, reached_rungs
from finetune_operator.reconcile.finetunesweep.runs import (
    best_key,
    check_values,
    describe,
    observe,
    template,
    trial_key,
    trial_template,
    trial_values,
    value_texts,
    with_values,
)
from finetune_operator.reconcile.finetunesweep.search import grid_size
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.passes import (
    Blocked,
    Done,
    Failed,
    PassOutcome,
    PlanBuilder,
    Working,
    finish_pass,
)
from finetune_operator.reconcile.records.dataset_versions import resolve_version
from finetune_operator.reconcile.templates import (
    cancel_run,
    create_run,
    find_run,
    is_of,
    run_name,
    why_ended,
)
from finetune_operator.status.conditions import is_finished, is_true, status_manifest
from finetune_operator.status.reasons import ConditionType, Reason
from finetune_trainer.contract.vocabulary import ADAPTER

ENDED: Final = frozenset({"Stopped", "Failed", "Done"})


class SweepPass:
    """One pass over a sweep: the trials so far, and the plan."""

    def __init__(self, sweep: FineTuneSweep, snapshot: Snapshot) -> None:
        self.sweep = sweep
        self.snapshot = snapshot
        self.draft = PlanBuilder(snapshot)
        self.cancelled: list[Apply] = []
        self.version = sweep.status.dataset_version
        self.trials = list(sweep.status.trials)
        self.best = sweep.status.best
        self.run = sweep.status.run

    @property
    def number_of_trials(self) -> int:
        """Number of trials to make. A grid has no more than its combinations."""
        spec = self.sweep.spec
        wanted = spec.max_trials if spec.search == "Random" else grid_size(spec.parameters)
        return min(spec.max_trials, wanted)

    @property
    def running(self) -> list[Trial]:
        """The trials that have not ended."""
        return [each for each in self.trials if each.state not in ENDED]

    def count(self, state: str) -> int:
        """Number of trials in a state."""
        return sum(each.state == state for each in self.trials)

    @property
    def device_hours(self) -> float:
        """Device hours of all trials."""
        return round(sum(each.device_hours for each in self.trials), 3)

    def find(self, name: str, key: str) -> FineTuneJob | Blocked | None:
        """The run of a key; None if it does not exist."""
        return find_run(self.sweep, name, key, self.snapshot)

    def cancel(self, run: FineTuneJob) -> None:
        """Cancel a run, unless it has ended or is cancelled."""
        if not is_finished(run) and not run.spec.cancel:
            self.cancelled.append(cancel_run(run))

    def plan(self, halt: PassOutcome) -> Plan:
        """The plan of a pass that ends with `halt`."""
        stopped = self.count("Stopped")
        ended = f"{len(self.trials) - len(self.running)}/{self.number_of_trials}"
        status = FineTuneSweepStatus(
            observed_generation=self.sweep.status.observed_generation,
            phase=self.sweep.status.phase,
            dataset_version=self.version,
            trials=tuple(self.trials),
            best=self.best,
            run=self.run,
            device_hours=self.device_hours,
            display=SweepDisplay(trials=f"{ended} ({stopped} stopped)" if stopped else ended),
            conditions=self.sweep.status.conditions,
        )
        result = finish_pass(self.sweep, status, halt, self.snapshot.now)
        self.draft.events += result.events
        plan = self.draft.plan(result.manifest, result.requeue_after)
        return replace(plan, apply=tuple(self.cancelled))


def reconcile(sweep: FineTuneSweep, snapshot: Snapshot) -> Plan:
    """The plan of one pass over a sweep."""
    if sweep.metadata.deletion_timestamp is not None:
        return Plan()
    if is_finished(sweep):
        seen = sweep.status.model_copy(update={"observed_generation": sweep.metadata.generation})
        return Plan(status=status_manifest(seen))
    current = SweepPass(sweep, snapshot)
    return current.plan(_halt(current))


def _halt(current: SweepPass) -> PassOutcome:
    """How the pass ends."""
    for step in (_validate, _choose_rows, _observe, _cancel, _fail, _search, _find_best):
        halt = step(current)
        if halt is not None:
            return halt
    return _train_best(current)


def _validate(current: SweepPass) -> PassOutcome | None:
    """Refuse values that no run can have, before the first trial."""
    sweep, spec = current.sweep, current.sweep.spec
    if current.trials:
        return None
    if messages := find_unimplemented(spec):
        return Failed(Reason.NOT_IMPLEMENTED, "; ".join(messages))
    if spec.search == "Grid" and (size := grid_size(spec.parameters)) > spec.max_trials:
        return _invalid(
            f"the grid has {size} combinations, and spec.maxTrials is {spec.max_trials}", "with fewer values,"
            " a higher maxTrials or search: Random"
        )  # fmt: skip
    fields = [each.field for each in spec.parameters if each.field != CHANGED_BY_CONTINUED_RUN]
    fixed = [each for each in fields if each.startswith(LORA)]
    parent = sweep.spec.template.spec.base_model.checkpoint
    checkpoint = current.snapshot.checkpoints.get(parent) if parent else None
    if fixed and checkpoint is not None and checkpoint.spec.type == ADAPTER:
        return _invalid(
            f"Checkpoint {parent} fixes {', '.join(fixed)}, because runs continue its adapter",
            "without this parameter, or with baseModel.uri",
        )
    bare = trial_template(sweep, None)
    for number in range(current.number_of_trials):
        wrong = check_values(bare, trial_values(sweep, number))
        if wrong is not None:
            return _invalid(f"trial {number}: {wrong}", "with other values in spec.parameters")
    return None


def _invalid(problem: str, remedy: str) -> Failed:
    return Failed(Reason.INVALID_SPEC, f"{problem}: create a new FineTuneSweep {remedy}")


def _choose_rows(current: SweepPass) -> PassOutcome | None:
    """The DatasetVersion of all runs, chosen once."""
    reference = current.sweep.spec.template.spec.dataset.ref
    if current.version is not None or reference is None:
        return None
    version = resolve_version(reference, current.sweep, current.snapshot)
    if isinstance(version, Blocked | Working):
        return version
    if not any(each.name == "validation" and each.rows for each in version.spec.splits):
        return _invalid(
            f"DatasetVersion {version.name} has no validation rows, by which trials are compared",
            f"after you have raised split.validation of Dataset {version.spec.dataset}",
        )
    current.version = version.name
    return None


def _observe(current: SweepPass) -> PassOutcome | None:
    """Take the state of the runs into the trials, and create runs that are missing."""
    for number, trial in enumerate(current.trials):
        run = current.find(trial.name, trial_key(current.sweep, number))
        if isinstance(run, FineTuneJob):
            current.trials[number] = observe(trial, run, current.snapshot)
            if trial.state == "Stopped":
                current.cancel(run)
        elif trial.state in ENDED:
            continue
        elif isinstance(run, Blocked):
            return run
        elif not current.sweep.spec.cancel:
            _create_trial(current, number)
    return None


def _create_trial(current: SweepPass, number: int) -> None:
    sweep = current.sweep
    spec = with_values(trial_template(sweep, current.version), trial_values(sweep, number))
    current.draft.create.append(create_run(sweep, trial_key(sweep, number), spec))


def _cancel(current: SweepPass) -> PassOutcome | None:
    if not current.sweep.spec.cancel:
        return None
    waiting = _stop_all(current)
    return waiting or Failed(
        Reason.CANCELLED, "cancelled by spec.cancel: finished trials stay, and no further run starts"
    )


def _stop_all(current: SweepPass) -> Working | None:
    """Cancel all runs; what the pass waits for until they have ended."""
    names = [each.name for each in current.trials]
    runs = (current.snapshot.finetunejobs.get(name) for name in (*names, *filter(None, [current.run])))
    unfinished = [run for run in runs if run is not None and _is_made(current, run) and not is_finished(run)]
    for run in unfinished:
        current.cancel(run)
    if not unfinished:
        return None
    return Working(Reason.CANCELLING, f"waiting for the end of {', '.join(run.name for run in unfinished)}")


def _is_made(current: SweepPass, run: FineTuneJob) -> bool:
    keys = (trial_key(current.sweep, number) for number in range(len(current.trials)))
    return any(is_of(run, key) for key in (*keys, best_key(current.sweep)))


def _fail(current: SweepPass) -> PassOutcome | None:
    """End the sweep after too many failures."""
    limit = current.sweep.spec.max_failed_trials
    failed = [each for each in current.trials if each.state == "Failed"]
    if len(failed) <= limit:
        return None
    waiting = _stop_all(current)
    if waiting is not None:
        return waiting
    run = current.snapshot.finetunejobs.get(failed[-1].name)
    reason, message = ("", "its run is deleted") if run is None else why_ended(run)
    return Failed(
        Reason.TOO_MANY_FAILED_TRIALS,
        f"{len(failed)} trials failed, more than spec.maxFailedTrials {limit}. The last one,"
        f" {failed[-1].name}: {reason}: {message}",
    )


def _search(current: SweepPass) -> PassOutcome | None:
    """Stop trials at their rungs, and start others, until all have ended."""
    for number in range(len(current.trials)):
        _judge(current, number)
    spec = current.sweep.spec
    is_spent = spec.max_device_hours is not None and current.device_hours >= spec.max_device_hours
    while (
        not is_spent
        and len(current.running) < spec.parallel_trials
        and len(current.trials) < current.number_of_trials
    ):
        number = len(current.trials)
        name = run_name(current.sweep, trial_key(current.sweep, number))
        values = value_texts(trial_values(current.sweep, number))
        existing = current.find(name, trial_key(current.sweep, number))
        if isinstance(existing, Blocked):
            return existing
        trial = Trial(name=name, values=values)
        current.trials.append(trial if existing is None else observe(trial, existing, current.snapshot))
        if existing is None:
            _create_trial(current, number)
    if not current.running:
        return None
    running = ", ".join(each.name for each in current.running)
    return Working(Reason.SEARCHING, f"trials are training: {running}")


def _judge(current: SweepPass, number: int) -> None:
    """Record the losses of a trial at the rungs it has reached, and stop it if it is not among the best."""
    trial, halving = current.trials[number], current.sweep.spec.early_stopping
    run = current.snapshot.finetunejobs.get(trial.name)
    progress = None if run is None else run.status.progress
    if halving is None or run is None or progress is None or trial.state in ENDED:
        return
    loss, step = progress.validation_loss, progress.validation_step
    if loss is None or step is None:
        return
    for rung in range(len(trial.rungs), reached_rungs(halving.rungs, step, progress.total_steps)):
        others = [each.rungs[rung] for each in current.trials if len(each.rungs) > rung]
        trial = trial.model_copy(update={"rungs": (*trial.rungs, loss)})
        if not continues(loss, others, halving.reduction_factor):
            trial = trial.model_copy(update={"state": "Stopped"})
            current.cancel(run)
            break
    current.trials[number] = trial


def _find_best(current: SweepPass) -> PassOutcome | None:
    """Choose the trial with the lowest validation loss, once."""
    if current.best is not None:
        return None
    done = [each for each in current.trials if each.objective is not None]
    if not done:
        return Failed(
            Reason.NO_FINISHED_TRIAL,
            f"none of the {len(current.trials)} trials has finished ({current.count('Failed')} failed,"
            f" {current.count('Stopped')} stopped): see status.trials, and create a new FineTuneSweep",
        )
    best = min(done, key=lambda each: each.objective or 0.0)
    current.best = BestTrial(
        name=best.name, objective=best.objective or 0.0, values=describe(best.values)[:512]
    )
    return None


def _train_best(current: SweepPass) -> PassOutcome:
    """The run with the best values, an ordinary one: its end is that of the sweep."""
    sweep, best = current.sweep, current.best
    number = next(number for number, each in enumerate(current.trials) if best and each.name == best.name)
    key = best_key(sweep)
    name = current.run or run_name(sweep, key)
    run = current.find(name, key)
    if isinstance(run, Blocked):
        return run
    current.run = name
    text = f"FineTuneJob {name} trains with the values of {current.trials[number].name}"
    if run is None:
        spec: dict[str, Any] = with_values(template(sweep, current.version), trial_values(sweep, number))
        current.draft.create.append(create_run(sweep, key, spec))
        return Working(Reason.TRAINING, text)
    if not is_finished(run):
        return Working(Reason.TRAINING, text)
    reason, message = why_ended(run)
    end = Done if is_true(run.status.conditions, ConditionType.READY) else Failed
    return end(reason, f"FineTuneJob {name}: {message}")
