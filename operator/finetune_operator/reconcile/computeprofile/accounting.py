# SPDX-License-Identifier: Apache-2.0
"""Count what each namespace uses of a ComputeProfile with a budget.

Usage is an integral over pods: devices × seconds. Each namespace is counted up to a time of its own, and a
pass adds what its pods have used since then. Each second is counted once, also after a restart, by the
operator that watches the namespace.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from heapq import nlargest
from typing import Final

from finetune_operator.api.compute_profile import (
    MAX_BUDGET_NAMESPACES,
    BudgetStatus,
    BudgetUsage,
    ComputeProfile,
    DeviceBudget,
)
from finetune_operator.observe.device_usage import PodUse
from finetune_operator.reconcile.platform.budgets import period_of

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
