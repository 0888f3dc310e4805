# SPDX-License-Identifier: Apache-2.0
"""Conditions: an object is in exactly one kstatus state, and transition times change only with the status."""

from datetime import UTC, datetime, timedelta

import pytest

from finetune_operator.api.meta import Condition
from finetune_operator.status.conditions import (
    MESSAGE_LIMIT,
    enter_state,
    find_condition,
    is_true,
    set_condition,
    shorten,
)
from finetune_operator.status.reasons import ConditionType, Reason

NOW = datetime(2030, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
LATER = NOW + timedelta(minutes=5)


def working(reason: str = Reason.PREPARING, now: datetime = NOW) -> tuple[Condition, ...]:
    return enter_state((), ConditionType.RECONCILING, reason, "", generation=1, now=now)


def test_a_transition_time_moves_only_when_the_status_flips() -> None:
    first = working()
    again = enter_state(first, ConditionType.RECONCILING, Reason.TRAINING, "step 3", generation=1, now=LATER)
    assert again[0].last_transition_time == NOW.replace(microsecond=0)
    assert (again[0].reason, again[0].message) == (Reason.TRAINING, "step 3")
    flipped = set_condition(
        again, ConditionType.RECONCILING, "False", Reason.TRAINING, "", generation=1, now=LATER
    )
    assert flipped[0].last_transition_time == LATER.replace(microsecond=0)


@pytest.mark.parametrize("state", [ConditionType.READY, ConditionType.STALLED, ConditionType.SUSPENDED])
def test_entering_a_state_leaves_every_other(state: ConditionType) -> None:
    both = set_condition(
        working(), ConditionType.TRAINED, "True", Reason.SUCCEEDED, "", generation=1, now=NOW
    )
    after = enter_state(both, state, Reason.SUCCEEDED, "", generation=2, now=LATER)
    assert {condition.type for condition in after} == {state, ConditionType.TRAINED}
    found = find_condition(after, state)
    assert found is not None
    assert found.observed_generation == 2


def test_a_long_message_is_cut_to_what_the_api_takes() -> None:
    conditions = enter_state(
        (), ConditionType.STALLED, Reason.STAGE_FAILED, "x" * 5000, generation=1, now=NOW
    )
    assert len(conditions[0].message) == MESSAGE_LIMIT
    assert conditions[0].message.endswith("…")


def test_a_quoted_text_controls_no_terminal() -> None:
    text = "clears \x1b[2J\x9b2J, rings \x07, reverses \u202e\u2066, and keeps\ttabs,\nlines, ü and 語"
    shown = shorten(text)
    assert len(shown) == len(text)
    assert set(text) - set(shown) == set("\x1b\x9b\x07\u202e\u2066")


def test_a_condition_that_is_not_there_is_not_true() -> None:
    assert is_true(working(), ConditionType.RECONCILING)
    assert not is_true((), ConditionType.READY)
