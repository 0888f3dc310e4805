# SPDX-License-Identifier: Apache-2.0
"""Start and end of a drain."""

from finetune_trainer.serve.http_middleware import Drain


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def state(drain: Drain) -> tuple[bool, bool]:
    return drain.active, drain.over


def test_a_drain_sends_clients_elsewhere_at_once_and_ends_after_its_seconds() -> None:
    clock = Clock()
    drain = Drain(10, clock)
    assert state(drain) == (False, False)

    drain.begin()
    assert state(drain) == (True, False)
    clock.now += 9.9
    assert state(drain) == (True, False)
    clock.now += 0.1
    assert state(drain) == (True, True)


def test_beginning_again_does_not_lengthen_a_drain() -> None:
    clock = Clock()
    drain = Drain(10, clock)
    drain.begin()
    clock.now += 9

    drain.begin()
    clock.now += 1

    assert drain.over


def test_a_drain_cannot_be_taken_back() -> None:
    clock = Clock()
    drain = Drain(10, clock)
    drain.begin()
    clock.now += 1000

    assert state(drain) == (True, True)
