# SPDX-License-Identifier: Apache-2.0
"""Budgets of ComputeProfiles: what each namespace has used, and whether it may start another stage.

Usage is an integral over pods: devices × seconds. Each namespace is counted up to a time of its own, and a
pass adds what its pods have used since then. Each second is counted once, also after a restart, by the
operator that watches the namespace.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from heapq import nlargest
from typing import Final

from finetune_operator.api.compute_profile import (
    MAX_BUDGET_NAMESPACES,
    BudgetPeriod,
    BudgetStatus,
    BudgetUsage,
    ComputeProfile,
    DeviceBudget,
)
from finetune_operator.api.labels import PROFILE
from finetune_operator.manifests.labels import DEVICES
from finetune_operator.observe.device_usage import PodUse
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.inputs.device_use import DeviceJob
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.passes import Working
from finetune_operator.stage_table import STAGES
from finetune_operator.status.reasons import Reason
from finetune_trainer.contract.base import lenient_validator
from finetune_trainer.contract.vocabulary import Stage


def read_used_shares(profile: Manifest) -> dict[str, float]:
    """By namespace, the share that is used in the current period: 1 or more if it is exhausted.

    Empty without a budget. Namespaces that have used nothing are absent.
    """
    spec = ((profile.get("spec") or {}).get("cost") or {}).get("budget")
    status = (profile.get("status") or {}).get("budget")
    if spec is None or status is None:
        return {}
    budget: DeviceBudget = lenient_validator(DeviceBudget).validate_python(spec)
    counted: BudgetStatus = lenient_validator(BudgetStatus).validate_python(status)
    return {each.namespace: budget.used(each) / budget.limit for each in counted.usage}


def find_exhausted(profile: Manifest) -> frozenset[str]:
    """The namespaces that have used their budget."""
    return frozenset(namespace for namespace, share in read_used_shares(profile).items() if share >= 1)


def is_counted(profile: Manifest) -> bool:
    """Whether the use of the profile has been counted once."""
    return (profile.get("status") or {}).get("budget") is not None


PERIODS: Final = {"Day": "today", "Week": "this week", "Month": "this month"}
RESERVED_SECONDS: Final = 3600
"""Seconds that the budget must have left for each device of the namespace's other Jobs. They start at the
same time after a reset, and none of them is ever stopped.

Also the time for which a Job without a running pod reserves: one that cannot start must not stop others.
"""
OVERDUE_SECONDS: Final = 900
"""Seconds after which the use of a namespace with a running Job must have been counted. Passes of the profile
are at most 300 s apart."""
UNCOUNTED_RECHECK_SECONDS: Final = 60.0
RECHECK_SECONDS: Final = 3600.0
"""Max seconds between two checks. A raised budget, a reset and the end of a Job wake the first object that
waits earlier, and its start wakes the next one."""
AFTER_FIRST_SECONDS: Final = 60.0
"""Seconds from a reset to the check of all objects that are not the first."""


def period_of(period: BudgetPeriod, moment: datetime) -> tuple[datetime, datetime]:
    """Begin and end of the period that has this moment, in UTC."""
    day = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    match period:
        case "Day":
            return day, day + timedelta(days=1)
        case "Week":
            monday = day - timedelta(days=day.weekday())
            return monday, monday + timedelta(days=7)
        case "Month":
            first = day.replace(day=1)
            return first, (first + timedelta(days=31)).replace(day=1)


def check_budget(
    profile: ComputeProfile | None, stage: Stage, namespace: str, snapshot: Snapshot
) -> Working | None:
    """Before a Job is created: wait if the namespace has used or reserved its budget of devices.

    Jobs that exist are never affected, so a namespace can exceed its budget by what they use. Without a
    count nothing starts: a budget whose status cannot be written would otherwise limit nothing.
    """
    if profile is None or profile.spec.cost.budget is None or not STAGES[stage].uses_devices:
        return None
    budget, status, now = profile.spec.cost.budget, profile.status.budget, snapshot.now
    jobs_of_namespace = snapshot.jobs_of_others(profile.name)
    if status is None or _is_overdue(status, namespace, jobs_of_namespace, now):
        return Working(
            Reason.BUDGET_NOT_COUNTED,
            f"the use of ComputeProfile {profile.name} by namespace {namespace} is not counted at the moment,"
            f" so the {stage} stage does not start: the operator counts within seconds if it can write the"
            " profile's status. If this stays, ask the platform team for the operator's log",
            UNCOUNTED_RECHECK_SECONDS,
        )
    is_over = now >= status.resets_at
    usage = None if is_over else status.of(namespace)
    resets_at = period_of(budget.period, now)[1] if is_over else status.resets_at
    used = 0.0 if usage is None else budget.used(usage)
    price = profile.spec.cost.price_per_device_hour

    def reserved(jobs: Iterable[DeviceJob]) -> float:
        return budget.per_second(sum(job.devices for job in jobs), price) * RESERVED_SECONDS

    jobs = [job for job in jobs_of_namespace if _reserves(job, now)]
    if used + reserved(jobs) < budget.limit:
        return None
    # The message has neither the usage nor the Jobs, which change: a waiting object writes its status once.
    unit = (
        (profile.spec.cost.currency or "of cost") if budget.cost_per_namespace is not None else "device hours"
    )
    whose = (
        f"its budget of ComputeProfile {profile.name}: {_figure(budget.limit)} {unit}"
        f" {PERIODS.get(budget.period, '')}"
    )
    after_reset = f"after the reset at {resets_at:%Y-%m-%dT%H:%M:%SZ}"
    jobs_at_reset = [job for job in jobs if _reserves(job, resets_at)]
    reset_suffices = reserved(jobs_at_reset) < budget.limit
    if used >= budget.limit:
        cause, start, ending = f"namespace {namespace} has used {whose}", after_reset, []
        if not reset_suffices:
            start += f", when enough of its Jobs ({_listed(profile, namespace)}) have ended"
    else:
        part = "alone uses up" if reserved(jobs) >= budget.limit else "uses up the rest of"
        cause = (
            f"other Jobs of namespace {namespace} reserve 1 h per device ({_listed(profile, namespace)}),"
            f" which {part} {whose}"
        )
        start, ending = "when enough of them have ended or have waited for more than 1 h", jobs
        if reset_suffices:
            start += f", or {after_reset}"
    return Working(
        Reason.BUDGET_EXHAUSTED,
        f"{cause}. The {stage} stage starts {start}."
        " To start it earlier, ask the platform team to raise the profile's cost.budget, or use another"
        " profile in a new object",
        _seconds_until_recheck(ending, resets_at, now)
        if snapshot.is_first_in_line(profile.name)
        else min(RECHECK_SECONDS, (resets_at - now).total_seconds() + AFTER_FIRST_SECONDS),
    )


def _is_overdue(status: BudgetStatus, namespace: str, jobs: Iterable[DeviceJob], now: datetime) -> bool:
    """Whether a Job of the namespace runs whose use should have been counted since the last count."""
    usage = status.of(namespace)
    if usage is None and len(status.usage) >= MAX_BUDGET_NAMESPACES:
        return False
    limit = now - timedelta(seconds=OVERDUE_SECONDS)
    counted_until = status.since if usage is None else usage.counted_until
    if now >= status.resets_at:
        counted_until = status.resets_at
    return counted_until < limit and any(job.runs and job.created_at < limit for job in jobs)


def _reserves(job: DeviceJob, moment: datetime) -> bool:
    """Whether the Job, in its present state, reserves a part of the budget at this moment."""
    return job.runs or moment < _waits_until(job)


def _waits_until(job: DeviceJob) -> datetime:
    return job.created_at + timedelta(seconds=RESERVED_SECONDS)


def _listed(profile: ComputeProfile, namespace: str) -> str:
    """The command that lists the Jobs."""
    return f"kubectl get jobs -n {namespace} -l {PROFILE}={profile.name},{DEVICES}"


def _seconds_until_recheck(jobs: Iterable[DeviceJob], resets_at: datetime, now: datetime) -> float:
    moments = (resets_at, *(_waits_until(job) for job in jobs if not job.runs))
    return min(RECHECK_SECONDS, (min(moments) - now).total_seconds() + 1)


def _figure(amount: float) -> str:
    return f"{amount:.3g}" if amount < 10 else f"{amount:.1f}".removesuffix(".0")


LAG: Final = timedelta(seconds=10)
"""Time after which use is counted: nodes report the start of a container late."""
MIN_PASS_SECONDS: Final = 10.0
"""Min time between two counts, each of which writes the status, unless a namespace is counted first."""
MAX_PASS_SECONDS: Final = 300.0
"""Max time between two counts while pods run."""
IDLE_SECONDS: Final = 3600.0
"""Max time between two passes without pods, in case the clock of the machine jumps over the reset."""


@dataclass(frozen=True, slots=True)
class Account:
    """The budget after a pass.

    Attributes:
        status: what was used; None without a budget.
        recheck_seconds: seconds until the next pass.
    """

    status: BudgetStatus | None
    recheck_seconds: float | None


def account(profile: ComputeProfile, uses: Collection[PodUse], now: datetime) -> Account:
    """Add what the pods have used since they were last counted.

    Args:
        profile: the ComputeProfile with the usage so far.
        uses: its pods in the namespaces that this operator watches, also those that ended recently.
        now: the time of the pass.
    """
    budget = profile.spec.cost.budget
    if budget is None:
        return Account(None, None)
    now = now.replace(microsecond=0)
    current = _in_period(budget, profile.status.budget, now)
    until, resource = now - LAG, profile.spec.accelerator.resource
    pods: defaultdict[str, list[PodUse]] = defaultdict(list)
    for use in uses:
        pods[use.namespace].append(use)
    uncounted = _uncounted(current, pods, resource, until)
    if any(_is_due(current, namespace, seconds, until) for namespace, seconds in uncounted.items()):
        current = _with(current, uncounted, until, profile.spec.cost.price_per_device_hour)
    return Account(current, _recheck_seconds(profile, budget, current, pods, now))


def _in_period(budget: DeviceBudget, before: BudgetStatus | None, now: datetime) -> BudgetStatus:
    """The usage so far, which begins at 0 in a new period."""
    start, end = period_of(budget.period, now)
    if before is None:
        # What was used before the budget was set does not count.
        return BudgetStatus(period=budget.period, since=now, resets_at=end)
    if now >= before.resets_at:
        return BudgetStatus(period=budget.period, since=start, resets_at=end)
    if before.period != budget.period:
        return before.model_copy(update={"period": budget.period, "resets_at": end})
    return before


def _uncounted(
    current: BudgetStatus, pods: Mapping[str, Collection[PodUse]], resource: str, until: datetime
) -> Mapping[str, int]:
    """Device seconds that are not counted yet, by namespace."""
    seconds: defaultdict[str, int] = defaultdict(int)
    for namespace, uses in pods.items():
        since = _counted_until(current, namespace)
        for use in uses:
            start = max(use.started_at, since)
            end = until if use.ended_at is None else min(use.ended_at, until)
            if end > start:
                seconds[namespace] += int((end - start).total_seconds()) * use.devices(resource)
    return {namespace: counted for namespace, counted in seconds.items() if counted}


def _counted_until(current: BudgetStatus, namespace: str) -> datetime:
    usage = current.of(namespace)
    return current.since if usage is None else usage.counted_until


def _is_due(current: BudgetStatus, namespace: str, seconds: int, until: datetime) -> bool:
    usage = current.of(namespace)
    if usage is not None:
        return (until - usage.counted_until).total_seconds() >= MIN_PASS_SECONDS
    return not _is_full(current) or seconds > min(each.device_seconds for each in current.usage)


def _is_full(current: BudgetStatus) -> bool:
    return len(current.usage) == MAX_BUDGET_NAMESPACES


def _with(
    current: BudgetStatus, uncounted: Mapping[str, int], until: datetime, price: float | None
) -> BudgetStatus:
    usage = {each.namespace: each for each in current.usage}
    for namespace, seconds in uncounted.items():
        before = usage.get(namespace)
        cost = None if before is None else before.cost
        if price is not None:
            cost = round((cost or 0.0) + seconds / 3600 * price, 6)
        usage[namespace] = BudgetUsage(
            namespace=namespace,
            device_seconds=(0 if before is None else before.device_seconds) + seconds,
            cost=cost,
            counted_until=until,
        )
    kept = nlargest(MAX_BUDGET_NAMESPACES, usage.values(), key=lambda each: each.device_seconds)
    return current.model_copy(update={"usage": tuple(sorted(kept, key=lambda each: each.namespace))})


def _recheck_seconds(
    profile: ComputeProfile,
    budget: DeviceBudget,
    current: BudgetStatus,
    pods: Mapping[str, Collection[PodUse]],
    now: datetime,
) -> float:
    """Seconds until the reset, until a namespace uses up its budget, or until use must be counted."""
    waits = [IDLE_SECONDS, (current.resets_at - now).total_seconds()]
    for namespace, uses in pods.items():
        if _awaits_count(current, namespace, uses, profile.spec.accelerator.resource):
            waits.append(MIN_PASS_SECONDS)
        running = [use for use in uses if use.ended_at is None]
        if running:
            used_up = _used_up_at(profile, budget, current, namespace, running)
            seconds = MAX_PASS_SECONDS if used_up is None else (used_up + LAG - now).total_seconds()
            waits.append(min(MAX_PASS_SECONDS, max(MIN_PASS_SECONDS, seconds)))
    return max(1.0, min(waits))


def _used_up_at(
    profile: ComputeProfile,
    budget: DeviceBudget,
    current: BudgetStatus,
    namespace: str,
    running: list[PodUse],
) -> datetime | None:
    """When these pods will have used the rest of the namespace's budget; None: never, or already."""
    usage = current.of(namespace)
    left = budget.limit - (0.0 if usage is None else budget.used(usage))
    devices = sum(use.devices(profile.spec.accelerator.resource) for use in running)
    per_second = budget.per_second(devices, profile.spec.cost.price_per_device_hour)
    if left <= 0 or per_second == 0:
        return None
    since = max(_counted_until(current, namespace), min(use.started_at for use in running))
    return since + timedelta(seconds=min(left / per_second, IDLE_SECONDS))


def _awaits_count(current: BudgetStatus, namespace: str, uses: Collection[PodUse], resource: str) -> bool:
    """Whether a pod of the namespace has ended and is not counted, or runs and none is counted yet."""
    usage = current.of(namespace)
    if usage is None and _is_full(current):
        return False
    since = _counted_until(current, namespace)
    return any(
        (usage is None if use.ended_at is None else use.ended_at > max(use.started_at, since))
        and use.devices(resource)
        for use in uses
    )
