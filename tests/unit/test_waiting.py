# SPDX-License-Identifier: Apache-2.0
"""Waits of the tests: their deadline follows progress."""

from itertools import count

import pytest

from tests.waiting import eventually


def test_a_wait_without_progress_ends_with_a_description() -> None:
    with pytest.raises(AssertionError, match="not within 0 s: the pod is ready\nno node"):
        eventually("the pod is ready", lambda: False, 0, describe=lambda: "no node", pause=0)


def test_a_wait_lasts_as_long_as_there_is_progress() -> None:
    polls, phases = count(), count()

    def ready() -> bool:
        return next(polls) >= 50

    assert eventually("the pod is ready", ready, 0, pause=0, progress=lambda: min(next(phases), 60))
    with pytest.raises(AssertionError, match="not within"):
        eventually("the pod is ready", lambda: False, 0, pause=0, progress=lambda: min(next(phases), 60))
