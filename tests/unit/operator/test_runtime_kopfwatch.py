"""How Kopf is told to behave."""

import itertools

from finetune_operator.runtime.kopfwatch import _settings


def test_kopf_never_gives_a_watch_up() -> None:
    """With one watch it would stop all others, and the process would be deaf without knowing it."""
    delays = list(itertools.islice(_settings().networking.error_backoffs, 10_000))  # type: ignore[arg-type]
    assert len(delays) == 10_000
    assert max(delays) <= 10
