"""When a server is going away, and when it has gone."""

from finetune_trainer.serve.drain import RESUME_SECONDS, Drain


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def state(drain: Drain) -> tuple[bool, float, bool]:
    return drain.active, drain.remaining, drain.over


def test_a_drain_sends_clients_elsewhere_at_once_and_ends_after_its_seconds() -> None:
    clock = Clock()
    drain = Drain(10, clock)
    assert state(drain) == (False, 0, False)

    drain.begin()
    assert state(drain) == (True, 10, False)
    clock.now += 4
    drain.terminate()
    assert state(drain) == (True, 6, False)

    clock.now += 6
    assert state(drain) == (True, 0, True)


def test_sigterm_after_the_hook_adds_no_second_wait() -> None:
    clock = Clock()
    drain = Drain(10, clock)
    drain.begin()
    clock.now += 10.5

    drain.terminate()

    assert drain.over


def test_beginning_again_does_not_lengthen_a_drain() -> None:
    clock = Clock()
    drain = Drain(10, clock)
    drain.begin()
    clock.now += 9

    drain.begin()

    assert drain.remaining == 1


def test_a_drain_that_no_sigterm_follows_is_taken_back() -> None:
    clock = Clock()
    drain = Drain(10, clock)
    drain.begin()
    clock.now += 10 + RESUME_SECONDS
    assert not drain.active

    drain.begin()
    assert drain.remaining == 10


def test_sigterm_cannot_be_taken_back() -> None:
    clock = Clock()
    drain = Drain(10, clock)
    drain.terminate()
    clock.now += 1000

    assert drain.active
    assert drain.over
