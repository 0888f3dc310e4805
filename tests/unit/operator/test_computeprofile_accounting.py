# SPDX-License-Identifier: Apache-2.0
"""What namespaces use of a budget: every device second is counted once, whenever the passes are."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_operator.api.compute_profile import (
    MAX_BUDGET_NAMESPACES,
    BudgetStatus,
    BudgetUsage,
    ComputeProfile,
)
from finetune_operator.observe.device_usage import PodUse
from finetune_operator.reconcile.platform.budgets import (
    LAG,
    MAX_PASS_SECONDS,
    MIN_PASS_SECONDS,
    Account,
    account,
    period_of,
)

BEGIN = datetime(2030, 1, 2, 3, 0, tzinfo=UTC)
"""A Wednesday."""


def after(seconds: float) -> datetime:
    return BEGIN + timedelta(seconds=seconds)


def use(start: float, end: float | None = None, devices: int = 1, namespace: str = "team") -> PodUse:
    ended = None if end is None else after(end)
    return PodUse(namespace, "gpu", after(start), ended, devices, {})


def profile(status: BudgetStatus | None = None, price: float | None = None, **budget: Any) -> ComputeProfile:
    fields = {"period": "Week", "deviceHoursPerNamespace": 1, **budget}
    cost: dict[str, Any] = {"budget": {key: value for key, value in fields.items() if value is not None}}
    if price is not None:
        cost["pricePerDeviceHour"] = price
    counted = {} if status is None else {"budget": status.to_dict()}
    return ComputeProfile.model_validate(
        {"kind": "ComputeProfile", "metadata": {"name": "gpu"}, "spec": {"cost": cost}, "status": counted}
    )


def begun(**fields: Any) -> BudgetStatus:
    """Counted from BEGIN."""
    return BudgetStatus(period="Week", since=BEGIN, resets_at=period_of("Week", BEGIN)[1], **fields)


def counted(result: Account, namespace: str = "team") -> int:
    assert result.status is not None
    usage = result.status.of(namespace)
    return 0 if usage is None else usage.device_seconds


@pytest.mark.parametrize(
    ("period", "moment", "start", "end"),
    [
        ("Day", "2030-01-02T03:04:05", "2030-01-02", "2030-01-03"),
        ("Week", "2030-01-02T03:04:05", "2029-12-31", "2030-01-07"),
        ("Week", "2029-12-31T00:00:00", "2029-12-31", "2030-01-07"),
        ("Week", "2030-01-06T23:59:59", "2029-12-31", "2030-01-07"),
        ("Month", "2028-02-29T12:00:00", "2028-02-01", "2028-03-01"),
        ("Month", "2030-12-31T23:59:59", "2030-12-01", "2031-01-01"),
    ],
)
def test_a_period_is_a_day_a_week_from_monday_or_a_month_in_utc(
    period: Any, moment: str, start: str, end: str
) -> None:
    begin, reset = period_of(period, datetime.fromisoformat(f"{moment}+00:00"))
    assert (begin.isoformat(), reset.isoformat()) == (f"{start}T00:00:00+00:00", f"{end}T00:00:00+00:00")


def test_nothing_is_counted_without_a_budget() -> None:
    plain = ComputeProfile.model_validate({"kind": "ComputeProfile", "metadata": {"name": "gpu"}, "spec": {}})
    assert account(plain, [use(0)], after(600)) == Account(None, None)


def test_the_count_begins_when_the_budget_is_set() -> None:
    first = account(profile(), [use(-3600, devices=4)], BEGIN)
    assert first.status == begun()
    later = account(profile(first.status), [use(-3600, devices=4)], after(100))
    assert counted(later) == 4 * (100 - LAG.total_seconds())


spans = st.tuples(
    st.integers(-500, 4000), st.integers(0, 2000) | st.none(), st.integers(0, 8), st.sampled_from("ab")
)


@given(
    pods=st.lists(spans, max_size=6),
    delays=st.lists(st.integers(0, int(LAG.total_seconds())), min_size=6, max_size=6),
    passes=st.lists(st.integers(1, 5000), max_size=20),
)
def test_any_passes_count_each_device_second_once(
    pods: list[tuple[int, int | None, int, str]], delays: list[int], passes: list[int]
) -> None:
    status: BudgetStatus | None = begun()
    uses = [
        (use(start, None if length is None else start + length, devices, namespace), delay)
        for (start, length, devices, namespace), delay in zip(pods, delays, strict=False)
    ]
    last = 7000
    for second in (*sorted(passes), last):
        now = after(second)
        # Each start and each end is reported some seconds late.
        seen = [
            each
            if each.ended_at is None or each.ended_at <= now - timedelta(seconds=delay)
            else replace(each, ended_at=None)
            for each, delay in uses
            if each.started_at <= now - timedelta(seconds=delay)
        ]
        before = status
        status = account(profile(status), seen, now).status
        assert status is not None
        for namespace in "ab":
            assert counted(Account(status, None), namespace) >= counted(Account(before, None), namespace)
    until = after(last) - LAG
    for namespace in "ab":
        expected = sum(
            max(0, int((min(each.ended_at or until, until) - max(each.started_at, BEGIN)).total_seconds()))
            * each.devices("")
            for each, _ in uses
            if each.namespace == namespace
        )
        assert counted(Account(status, None), namespace) == expected


def test_the_use_of_a_new_period_begins_at_its_begin_and_what_was_before_is_forgotten() -> None:
    reset = period_of("Week", BEGIN)[1]
    entry = BudgetUsage(namespace="team", device_seconds=9000, counted_until=reset - timedelta(seconds=200))
    running = PodUse("team", "gpu", BEGIN, None, 2, {})
    before = account(profile(begun(usage=(entry,))), [running], reset - timedelta(seconds=1))
    assert counted(before) > 9000
    now = reset + timedelta(seconds=100)
    result = account(profile(begun(usage=(entry,))), [running], now)
    assert counted(result) == 2 * (100 - LAG.total_seconds())
    assert result.status is not None
    assert (result.status.since, result.status.resets_at) == (reset, reset + timedelta(days=7))


def test_a_changed_period_keeps_the_usage_until_its_own_reset() -> None:
    entry = BudgetUsage(namespace="team", device_seconds=9000, counted_until=after(50))
    result = account(profile(begun(usage=(entry,)), period="Day"), [], after(60))
    assert result.status is not None
    assert (result.status.period, result.status.resets_at) == ("Day", period_of("Day", BEGIN)[1])
    assert result.status.usage == (entry,)


def test_each_operator_adds_what_its_own_namespaces_use() -> None:
    status: BudgetStatus | None = begun()
    for second in (100, 200, 300):
        for namespace in ("a", "b"):
            own = [use(0, devices=3, namespace=namespace)]
            status = account(profile(status), own, after(second)).status
    result = Account(status, None)
    assert counted(result, "a") == counted(result, "b") == 3 * (300 - LAG.total_seconds())


def test_the_status_is_written_at_most_every_few_seconds_and_without_pods_never() -> None:
    first = account(profile(begun()), [use(0)], after(100)).status
    assert account(profile(first), [use(0), use(95)], after(100 + MIN_PASS_SECONDS - 1)).status == first
    assert account(profile(first), [use(0)], after(100 + MIN_PASS_SECONDS)).status != first
    assert account(profile(first), [use(0, 90)], after(5000)).status == first


def test_cost_is_added_at_the_price_of_the_time() -> None:
    status = account(profile(begun(), price=3.6), [use(0)], after(110)).status
    status = account(profile(status, price=36.0), [use(0)], after(210)).status
    assert status is not None
    assert status.usage[0].cost == pytest.approx(100 * 0.001 + 100 * 0.01)
    assert account(profile(begun()), [use(0)], after(110)).status == begun(
        usage=(BudgetUsage(namespace="team", device_seconds=100, counted_until=after(100)),)
    )


@pytest.mark.parametrize(
    ("uses", "seconds"),
    [
        pytest.param([], 3600, id="without pods"),
        pytest.param([use(0)], MIN_PASS_SECONDS, id="the first pod of a namespace"),
        pytest.param([use(0, devices=0)], MAX_PASS_SECONDS, id="the first pod without devices"),
        pytest.param([use(-60)], MAX_PASS_SECONDS, id="far from the limit"),
        # 4 device hours per hour use the budget of 1 hour in 15 minutes.
        pytest.param([use(-700, devices=4)], 900 - 700 + LAG.total_seconds(), id="near the limit"),
        pytest.param([use(-4000)], MAX_PASS_SECONDS, id="exhausted"),
        pytest.param([use(-60, -5)], MIN_PASS_SECONDS, id="with an end to count"),
        pytest.param([use(-60, -20)], 3600, id="with all ends counted"),
        pytest.param([use(-5, -5)], 3600, id="with an end of a pod that used nothing"),
        pytest.param([use(-60, -5, devices=0)], 3600, id="with an end without devices"),
    ],
)
def test_a_pass_follows_when_there_is_something_to_count(uses: list[PodUse], seconds: float) -> None:
    status = begun().model_copy(update={"since": after(-5000)})
    assert account(profile(status), uses, BEGIN).recheck_seconds == seconds


def test_a_pass_follows_at_the_reset() -> None:
    reset = period_of("Week", BEGIN)[1]
    running = [PodUse("team", "gpu", BEGIN, None, 2, {})]
    assert account(profile(begun()), running, reset - timedelta(seconds=7)).recheck_seconds == 7


def test_of_too_many_namespaces_those_that_used_least_are_left_out() -> None:
    uses = [use(0, 100 + number, namespace=f"team-{number}") for number in range(MAX_BUDGET_NAMESPACES + 10)]
    status = account(profile(begun()), uses, after(2000)).status
    assert status is not None
    assert len(status.usage) == MAX_BUDGET_NAMESPACES
    assert min(each.device_seconds for each in status.usage) == 110
    again = account(profile(status), uses, after(4000))
    assert (again.status, again.recheck_seconds) == (status, 3600)
